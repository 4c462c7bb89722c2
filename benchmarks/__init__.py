"""Data sets as their authors lay them out, pictures, the data check; metrics, records, report, the papers' tables."""
