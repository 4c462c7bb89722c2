# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Data sets as their authors lay them out, pictures, the data check; metrics, records, report, the papers' tables."""
