# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""The networks: the policy (a Qwen-VL), the segmenter (SAM2 by its own parts), LENS's context module between them.

    policy    = load_policy("Qwen/Qwen2.5-VL-7B-Instruct", image_size=840)      # or a folder, or toy/qwen2_5_vl
    prompts   = policy.encode(images, texts)                                    # tokens, pixels, 3-D positions, frames
    rows      = policy.pack(prompts, [(0, completions)])                        # one packed row per prompt
    logp, entropy, masks = policy(rows)                                        # the one call that training goes through
    segmenter = load_segmenter("facebook/sam2-hiera-large")                     # or a checkpoint, or toy/sam2
    masks     = segmenter.union(segmenter.embed(images), [0], [answer.instances])   # one per answer: (H, W) bool

Words: a *row* is a packed row, one prompt followed by completions to it (grpo.pack_group), and what goes through the
network together is a few of them. *visible* says which token may look at which. A *mask* is always of a picture. A
*frame* is the (width, height) that coordinates are written in (data.py).

Shape letters: P prompts, G completions of a prompt, S prompt tokens, T completion tokens (padded), R rows, L their
length, B completions, M tokens of them, K context queries, d hidden width, c SAM2's width, I images, N objects (of all
completions together), k points per object, (h, w) SAM2's mask resolution, a quarter of its input.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import grpo

# ----------------------------------------------------------------------------------------------------------- the policy


@dataclasses.dataclass
class Prompts:
    """P encoded prompts. `inputs` is left-padded, ready to sample from, positions explicit: nothing recomputes them."""

    # input_ids, attention_mask, mm_token_type_ids (P, S), position_ids (3, P, S), image_grid_thw (P, 3), pixel_values
    # (patches of all pictures one after the other, values of a patch)
    inputs: dict[str, Tensor]
    resized: list[tuple[int, int]]  # (width, height) of each picture as the model sees it

    def one(self, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Prompt i without padding: ids (S,), positions (3, S), its rows of pixel_values, its grid (1, 3)."""
        x = self.part(i, i + 1)
        real = x["attention_mask"][0].bool()
        return x["input_ids"][0, real], x["position_ids"][:, 0, real], x["pixel_values"], x["image_grid_thw"]

    def part(self, i: int, j: int) -> dict[str, Tensor]:
        """The inputs of prompts i to j - 1, padded as they are."""
        # Rows of pixel_values up to each picture's end.
        ends = self.inputs["image_grid_thw"].prod(-1).cumsum(0).tolist()
        pixels = slice(ends[i - 1] if i else 0, ends[min(j, len(ends)) - 1])
        part = {}
        for name, x in self.inputs.items():
            if name == "position_ids":  # (3, P, S)
                part[name] = x[:, i:j]
            else:
                part[name] = x[pixels] if name == "pixel_values" else x[i:j]
        return part


@dataclasses.dataclass
class Rows:
    """Packed rows (grpo.pack_group), padded to one length, ready for Policy.forward. Flat indices run over R * L."""

    ids: Tensor  # (R, L)
    positions: Tensor  # (3, R, L)
    visible: Tensor  # (R, 1, L, L) bool: visible[r, 0, q, k] = token q of row r may look at token k
    pixel_values: Tensor  # (all patches of all pictures, values of a patch)
    image_grid_thw: Tensor  # (R, 3) patches of each picture: frames, down, across
    source: Tensor  # (M,) flat index of the state that predicts each completion token: the state of the token before it
    target: Tensor  # (M,) the token predicted
    query_places: Tensor | None = None  # (B, K) flat indices of the context queries


FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")  # model_type of what is supported; data.FAMILIES: how each writes
TEMPLATE_SECONDS = 10  # that a chat template may take


class CannotLoad(OSError):
    """A network that cannot be had, in one sentence. `what` is "policy" or "segmenter"; name: what was asked for."""

    def __init__(self, what: str, name: str, why: str):
        super().__init__(f"could not load the {what} {name!r}: {why}")
        self.what = what


@contextmanager
def _tokenizing(tokenizer):
    """CannotLoad where a stranger's tokenizer.json has a pattern that tries for ever: its engine gives up with a panic,
    which is no Exception."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise CannotLoad("policy", tokenizer.name_or_path, f"its tokenizer gave up on a text ({error}).") from None


def _require_rgb(images: Sequence[Image.Image]) -> None:
    for i, image in enumerate(images):
        if image.mode != "RGB":
            raise ValueError(f"picture {i} has mode {image.mode!r}: make it RGB (benchmarks.pictures.open_image does)")


@torch.compiler.disable  # how many windows there are, and how long, differs from picture to picture
def window_attention(module, query, key, value, attention_mask=None, *, scaling=None, cu_seq_lens_q=None, **other):
    """The vision tower's attention, each patch within its window (or picture), all windows in one call.

    query, key, value (1, H, L, d); cu_seq_lens_q (W + 1,): where the W windows begin and end -> (1, L, H, d), None.
    transformers calls any attention that is not a flash kernel once per window. A picture of 840 x 840 has 64 of them,
    and Qwen2.5-VL 28 layers that look at windows: 1,800 small calls.
    """
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (L, H, d)
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        from torch.nn.attention.varlen import varlen_attn

        bounds = cu_seq_lens_q.int()
        longest = int(other["max_length_q"])
        out = varlen_attn(
            q.contiguous(), k.contiguous(), v.contiguous(), bounds, bounds, longest, longest, scale=scaling
        )
        return out[None], None
    # Elsewhere windows of the same length are a batch: exact, and at most a few lengths.
    starts = cu_seq_lens_q[:-1]
    lengths = cu_seq_lens_q[1:] - starts
    out = torch.empty_like(q)
    for n in lengths.unique().tolist():
        rows = starts[lengths == n][:, None] + torch.arange(n, device=q.device)  # (windows, n)
        batch = (x[rows].transpose(1, 2) for x in (q, k, v))  # (windows, H, n, d)
        out[rows] = F.scaled_dot_product_attention(*batch, scale=scaling).transpose(1, 2)
    return out[None], None


def windows_in_one_call(vlm) -> None:
    """Let a VLM's vision tower use window_attention. By its name transformers takes it for a flash kernel, and so hands
    it all windows together; nothing is patched."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS["windows_flash"] = window_attention
    vlm.model.visual.config._attn_implementation = "windows_flash"


def compile_layers(vlm) -> None:
    """Compile each decoder layer and vision block (torch.compile), for rows of every length: fewer, larger kernels. The
    modules stay what they are, so checkpointing, FSDP and LoRA still wrap them. Half a minute, once."""
    # Vision blocks and decoder layers share one forward, which is compiled for each of their uses: with and without
    # gradient, with checkpointing, for one token and for many.
    torch._dynamo.config.recompile_limit = 64
    for layer in [*vlm.get_decoder().layers, *vlm.model.visual.blocks]:
        layer.compile(dynamic=True)


class Policy(nn.Module):
    """A Qwen-VL and its processor as one module. All training goes through `forward`, which FSDP and autocast wrap.

    It must not have a get_output_embeddings of its own: Accelerate's FSDP2 would then shard the output matrix by
    itself, and forward, which takes that matrix from outside its module, would find a piece of it.
    """

    def __init__(
        self,
        vlm,  # Hugging Face's model, with its language-model head
        processor,  # its tokenizer, chat template and image processor
        image_size: int | None = None,  # every picture becomes a square of this side; None: its own shape
        max_pixels: int = 1_000_000,  # ... shrunk to no more than this
        context: ContextModule | None = None,  # LENS, and the SAM2 that its queries prompt: part of the policy, since
        segmenter: Segmenter | None = None,  # both are trained with it
    ):
        super().__init__()
        grpo.require_plain_attention(vlm)
        windows_in_one_call(vlm)
        self.vlm = vlm
        self.processor = processor
        self.context = context
        self.segmenter = segmenter
        self.image_size = image_size
        self.max_pixels = max_pixels
        self.family: str = vlm.config.model_type
        self._no_split_modules = sorted(vlm._no_split_modules or [])  # what FSDP wraps one by one
        vision = vlm.config.vision_config
        self.patch = vision.patch_size
        self.factor = vision.patch_size * vision.spatial_merge_size  # sides of a resized picture are multiples of it
        tokenizer = processor.tokenizer
        self.eos_token_id: int = tokenizer.convert_tokens_to_ids("<|im_end|>")
        # A model may end otherwise, too: at any token that its generation_config names.
        named = vlm.generation_config.eos_token_id  # one, several, or None
        also = named if isinstance(named, list) else [] if named is None else [named]
        self.end_ids: list[int] = sorted({self.eos_token_id, *also})
        self.opened = self._opened()
        # Vision tokens in a completion would ask the next forward for pictures that do not exist: they are never
        # sampled, and have no probability when completions are scored.
        names = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
        known = tokenizer.get_vocab()
        self.banned_ids: list[int] = [known[name] for name in names if name in known]
        # Rows of the output matrix past the tokenizer's last token exist only to round its size up.
        self.banned_ids += range(max(known.values()) + 1, vlm.get_output_embeddings().weight.shape[0])

    @property
    def device(self) -> torch.device:
        return self.vlm.device

    def _opened(self) -> str:
        """What the chat template writes of the answer itself, as those of reasoning models do: "<think>", or nothing.

        It stands in the prompt, and so at the head of every completion (`decode`): without it the thought of such a
        model would never be found.
        """
        message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
        texts: Future = Future()

        def write() -> None:
            try:
                write_one = partial(self.processor.apply_chat_template, message, tokenize=False)
                texts.set_result([write_one(add_generation_prompt=answer) for answer in (False, True)])
            except Exception as error:
                texts.set_exception(error)

        Thread(target=write, daemon=True).start()  # left behind where a stranger's template loops for ever
        if not wait([texts], TEMPLATE_SECONDS).done:
            raise ValueError(f"its chat template has not come to an end in {TEMPLATE_SECONDS} s")
        asked, opened = texts.result()
        if "<|image_pad|>" not in asked:
            raise ValueError("its chat template leaves no place for a picture")
        at = opened.find("<think>", len(asked)) if opened.startswith(asked) else opened.rfind("<think>")
        return opened[at:] if at >= 0 else ""

    def encode(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Prompts:
        """P RGB pictures and P user messages -> Prompts, on the policy's device.

        image_size resizes every picture to that square (rounded down to the family's factor: 840 becomes 832 at factor
        32); without it the processor's native resize applies, up to max_pixels. ValueError for pictures that are not
        RGB.
        """
        _require_rgb(images)
        if self.image_size:
            side = self.image_size // self.factor * self.factor
            images = [image.resize((side, side), Image.Resampling.BICUBIC) for image in images]
            resize = {"do_resize": False}
        else:
            images = [widen_thin(image) for image in images]
            resize = {"size": {"shortest_edge": self.factor**2 * 4, "longest_edge": self.max_pixels}}
        # The template leaves one <|image_pad|> per picture; the processor repeats it, one for each merged patch.
        chat = partial(self.processor.apply_chat_template, tokenize=False, add_generation_prompt=True)
        # A request is text: what it spells like <|im_end|> or <|image_pad|> is none of the template's tokens.
        texts = [text.encode("utf-8", "replace").decode("utf-8").replace("<|", "< |") for text in texts]
        parts = [[{"type": "image"}, {"type": "text", "text": text}] for text in texts]
        chats = [chat([{"role": "user", "content": content}]) for content in parts]
        with _tokenizing(self.processor.tokenizer):
            inputs = self.processor(
                text=chats,
                images=list(images),
                padding=True,
                padding_side="left",  # the last column is then every prompt's last token, after which sampling goes on
                return_mm_token_type_ids=True,  # 1 at a picture's tokens: get_rope_index tells what lies on a grid
                return_tensors="pt",
                **resize,
            ).to(self.device)
        inputs = {**inputs, "pixel_values": inputs["pixel_values"].to(self.vlm.dtype)}
        # M-RoPE: three position numbers per token (time, height, width), so that image tokens lie on a grid. Text has
        # the same number on all three axes, and goes on after the picture from its largest:
        #
        #     token    the  cat   [a picture, 2 x 3]   sits  here
        #     time      0    1     2  2  2  2  2  2     5     6
        #     height    0    1     2  2  2  3  3  3     5     6
        #     width     0    1     2  3  4  2  3  4     5     6
        #
        # Computed here, once. (Qwen2.5-VL falls back silently to plain 1-D positions where it has to guess.)
        inputs["position_ids"], _ = self.vlm.model.get_rope_index(
            input_ids=inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=inputs["attention_mask"],
        )
        # The size is read off the grid, never recomputed: it is what the coordinates mean to this family.
        resized = [(int(w) * self.patch, int(h) * self.patch) for _, h, w in inputs["image_grid_thw"].tolist()]
        return Prompts(inputs, resized)

    def pack(self, prompts: Prompts, groups: Sequence[tuple[int, Sequence[Tensor]]]) -> Rows:
        """Each (prompt index, its completions) in one row: [prompt | o_1 | q.. | o_2 | q.. ], K places q for queries.

        Completions keep their order: the M tokens that forward scores are row by row, completion by completion, token
        by token; query states come in the same order.
        """
        # A row:   S prompt tokens | t_1 tokens of o_1, K places | t_2 tokens of o_2, K places | ...
        # `at` walks along the rows of the flattened (R, L): the place of the current completion's first token.
        K = 0 if self.context is None else len(self.context.queries)
        prompt_lengths = prompts.inputs["attention_mask"].sum(-1).tolist()
        L = max(prompt_lengths[i] + sum(len(o) + K for o in completions) for i, completions in groups)
        parts = []
        source = []
        target = []
        query_places = []
        for r, (i, completions) in enumerate(groups):
            prompt_ids, rope, pixels, grid = prompts.one(i)
            places = prompt_ids.new_zeros(K)
            ids, positions, visible = grpo.pack_group(prompt_ids, [torch.cat([o, places]) for o in completions])
            S = len(prompt_ids)
            padding = L - len(ids)
            # M-RoPE: text after the prompt counts on from its largest position, the same on all three axes.
            after = (rope.max() + 1 + positions[S:] - S).expand(3, -1)
            # Padding looks at itself: attention over no key at all would be nan.
            padded = torch.eye(L, dtype=torch.bool, device=ids.device)
            padded[: len(ids), : len(ids)] = visible
            parts.append(
                (F.pad(ids, (0, padding)), F.pad(torch.cat([rope, after], 1), (0, padding)), padded, pixels, grid)
            )
            source.append(r * L + grpo.predicting_states(S, [len(o) for o in completions], K).to(ids.device))
            target += completions
            at = r * L + S
            for o in completions:
                query_places.append(torch.arange(at + len(o), at + len(o) + K, device=ids.device))
                at += len(o) + K
        ids, positions, visible, pixels, grid = zip(*parts, strict=True)
        return Rows(
            ids=torch.stack(ids),
            positions=torch.stack(positions, 1),
            visible=torch.stack(visible)[:, None],
            pixel_values=torch.cat(pixels),
            image_grid_thw=torch.cat(grid),
            source=torch.cat(source),
            target=torch.cat(target),
            query_places=torch.stack(query_places) if K else None,
        )

    def forward(
        self,
        rows: Rows,
        temperature: float = 1.0,  # what the completions were sampled at
        embeddings: Embeddings | None = None,  # LENS: SAM2's view of the pictures; without it no mask is made
        index: Tensor | None = None,  # (B,) which of these pictures each completion is about
        with_logp: bool = True,  # False where masks alone are wanted: no logits are made
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Packed completions -> logp (M,), entropy (M,) (grpo.token_logprobs; None each if not `with_logp`), and for
        LENS, given the pictures' embeddings and index (B,) into them, each completion's mask logits (B, h, w), else
        None."""
        embeds = self.vlm.get_input_embeddings()(rows.ids)
        if rows.query_places is not None:  # LENS: learned vectors in the places that `pack` left for them
            B, K = rows.query_places.shape
            queries = self.context.queries.to(embeds.dtype).expand(B, K, -1).reshape(B * K, -1)
            embeds = embeds.flatten(0, 1).index_put((rows.query_places.flatten(),), queries).view_as(embeds)
        hidden = self.vlm.model(
            inputs_embeds=embeds,  # (R, L, d)
            attention_mask=rows.visible,  # 4-D, as packed; a 2-D one would make completions see their siblings
            position_ids=rows.positions,  # (3, R, L), restarting after the prompt in every completion
            pixel_values=rows.pixel_values,  # the vision tower runs once per row, not once per completion
            image_grid_thw=rows.image_grid_thw,
            use_cache=False,
        ).last_hidden_state.flatten(0, 1)  # (R * L, d)
        logp = entropy = None
        if with_logp:
            # Only states that predict a completion's token meet the output matrix: prompt, padding and queries need no
            # logits, of which a full set is what fills a GPU.
            logp, entropy = grpo.token_logprobs(
                hidden[rows.source],
                self.vlm.get_output_embeddings().weight,
                rows.target,
                temperature=temperature,
                banned_ids=self.banned_ids,
            )
        if rows.query_places is None or embeddings is None:
            return logp, entropy, None
        # LENS Eq. 2-4: states of the queries -> connector -> SAM2's sparse prompt tokens -> its single-mask output.
        tokens = self.context(hidden[rows.query_places])
        return logp, entropy, self.segmenter.decode(embeddings, index, tokens)[0][:, 0]

    def decode(self, ids: Tensor, mask: Tensor) -> list[str]:
        """(B, T) ids and mask (the tokens that were written) -> the completions' texts, without their end token, with
        what the chat template had written of them (`opened`)."""
        ids = ids.cpu()
        kept = mask.cpu() & ~torch.isin(ids, torch.tensor(self.end_ids))
        tokenizer = self.processor.tokenizer
        return [
            self.opened + tokenizer.decode(row[keep].tolist(), skip_special_tokens=False)
            for row, keep in zip(ids, kept, strict=True)
        ]

    def tokens(self, text: str) -> list[int]:
        """A completion's text, as decode gives it, as tokens to be trained on: its end token is put behind it."""
        written = text.removeprefix("<think>") if self.opened.startswith("<think>") else text
        with _tokenizing(self.processor.tokenizer):
            return self.processor.tokenizer(written).input_ids + [self.eos_token_id]

    def save(self, folder: str | Path, state: dict[str, Tensor] | None = None, vlm: bool = True) -> None:
        """Write the Hugging Face format: from_pretrained loads the folder. LENS's context module and mask decoder lie
        beside. With LoRA it is PEFT's format: the adapter, and the name of the model that it belongs to.

        state: this module's full state dict, where its own parameters are sharded over processes. vlm False: without
        the VLM's own files, which another folder has already.
        """
        state = self.state_dict() if state is None else state
        if vlm:
            self.vlm.save_pretrained(folder, state_dict=_under(state, "vlm."))
        self.processor.save_pretrained(folder)
        if self.context is not None:
            lens = {k: v for k, v in state.items() if k.startswith("context.")}
            lens |= {f"mask_decoder.{k}": v for k, v in _under(state, "segmenter.mask_decoder.").items()}
            save_file({k: v.detach().cpu().contiguous() for k, v in lens.items()}, Path(folder, "lens.safetensors"))
            config = {"context": self.context.config, "segmenter": self.segmenter.name}
            Path(folder, "lens.json").write_text(json.dumps(config), encoding="utf-8")


# ------------------------------------------------------------------------------------------- a rollout in packed rows


@dataclasses.dataclass
class MicroBatch:
    """A micro-batch: rows that go through the network together, and which of the rollout's tokens they hold."""

    rows: Rows
    at: Tensor  # (M,) index of each token in the rollout's flattened (P, G, T)
    completions: list[tuple[int, int]]  # (p, g) of each of the B completions, in the order of the rows
    # What the update writes down here (train.py), each (M,), once per rollout:
    old_logp: Tensor | None = None  # log-probabilities in its first forward, pi_old; None until then
    ref_logp: Tensor | None = None  # ... under the reference, before the update; None without a KL term


def pack_rollout(
    policy: Policy, prompts: Prompts, rollout: grpo.Rollout, max_row_tokens: int, rows_per_batch: int
) -> list[MicroBatch]:
    """Cut a rollout (P, G, T) into micro-batches of packed rows. That changes no gradient: the weights of its tokens
    are the whole step's (grpo.token_weights).

    A group fills one row, or several where it has more than max_row_tokens, each repeating the prompt; a completion is
    never cut. Rows of similar length go together, rows_per_batch of them, so that little is padded.
    """
    P, G, T = rollout.mask.shape
    lengths = rollout.mask.sum(-1).tolist()
    tail = 0 if policy.context is None else len(policy.context.queries)
    plan: list[tuple[int, int, list[int]]] = []  # (tokens of the row, p, which g)
    for p in range(P):
        prompt = int(prompts.inputs["attention_mask"][p].sum())
        row: list[int] = []
        tokens = prompt
        for g in range(G):
            if row and tokens + lengths[p][g] + tail > max_row_tokens:
                plan.append((tokens, p, row))
                row = []
                tokens = prompt
            row.append(g)
            tokens += lengths[p][g] + tail
        plan.append((tokens, p, row))
    plan.sort(key=lambda r: (-r[0], r[1], r[2]))  # the longest first: if memory runs out, it does at once
    micros = []
    for i in range(0, len(plan), rows_per_batch):
        batch = plan[i : i + rows_per_batch]
        completions = [(p, g) for _, p, row in batch for g in row]
        groups = [(p, [rollout.ids[p, g, : lengths[p][g]] for g in row]) for _, p, row in batch]
        at = torch.cat([(p * G + g) * T + torch.arange(lengths[p][g]) for p, g in completions])
        micros.append(MicroBatch(policy.pack(prompts, groups), at.to(rollout.ids.device), completions))
    return micros


@torch.no_grad()
def masks_from_queries(
    policy: nn.Module, micros: Sequence[MicroBatch], embeddings: Embeddings
) -> dict[tuple[int, int], Tensor]:
    """LENS (Eq. 2-4): the mask of every completion from its context queries, (p, g) -> (H, W) bool, at original size.

    policy: a Policy with a context module, wrapped by Accelerate or not; embeddings: of the P prompts' pictures. The
    written box plays no part, so a text that does not parse has a mask too. Without gradient: reward and evaluation
    look at it; the loss makes its own.
    """
    masks = {}
    for micro in micros:
        index = torch.tensor([p for p, _ in micro.completions], device=embeddings.features.device)
        logits = policy(micro.rows, embeddings=embeddings, index=index, with_logp=False)[2]
        for (p, g), logit in zip(micro.completions, logits, strict=True):
            masks[p, g] = Segmenter.resize(logit, embeddings.sizes[p][::-1]) > 0
    return masks


# -------------------------------------------------------------------------------------------------- loading and saving


def find(name: str | Path) -> str:
    """A folder or file as named from here, else one that is shipped beside this file (toy/qwen2_5_vl, from wherever a
    run is started). Any other name stays what it is, as a Hub id must."""
    shipped = Path(__file__).resolve().parent / name
    return str(shipped if shipped.exists() and not Path(name).exists() else name)


def _sentence(error: Exception) -> str:
    """What an error of a library's says, in one line."""
    return " ".join(str(error).split())[:200].replace(". ", "; ").rstrip(".") or type(error).__name__


def _require_finite(network: nn.Module) -> None:
    """ValueError, by name, for weights with a NaN or an infinity: every answer would be none, every mask empty."""
    if bad := [name for name, p in network.named_parameters() if not p.detach().sum().isfinite()]:
        raise ValueError(f"its weights are not all numbers: {bad[0]}")


def _under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def widen_thin(image: Image.Image, ratio: int = 150) -> Image.Image:
    """Widen a picture whose sides differ by more than `ratio` (the processors refuse 200). Boxes stay right: frames
    scale each axis by itself."""
    w, h = image.size
    if max(w, h) <= ratio * min(w, h):
        return image
    w, h = min(w, 100 * ratio), min(h, 100 * ratio)  # of 1 x 1,000,000 pixels it would make 7 thousand millions
    return image.resize((max(w, h // ratio), max(h, w // ratio)))


def config_of(name: str):
    """The Hugging Face configuration of what load_policy would load. CannotLoad if there is none."""
    try:
        return _config_of(_base_of(find(name)))
    except Exception as error:
        raise CannotLoad("policy", name, f"{_sentence(error)}.") from error


def load_policy(
    name: str,  # a Hub id, or a folder as Policy.save writes it
    *,
    image_size: int | None = None,  # as in Policy
    max_pixels: int = 1_000_000,
    dtype: torch.dtype = torch.float32,  # of the weights
    device: str | torch.device = "cpu",
    segmenter: str = "",  # LENS: the SAM2 to take where the folder names another than is known here
) -> Policy:
    """A Qwen2-VL, Qwen2.5-VL or Qwen3-VL from a Hub id or a folder, with its context module if the folder has one.

    If the folder holds a LoRA, the model that it belongs to with the adapter on it (add_lora).
    CannotLoad, an OSError, where neither gives a model, or one of another family.
    """
    from transformers import PROCESSOR_MAPPING, AutoModelForImageTextToText  # slow to import

    base = name = find(name)
    try:
        base = _base_of(name)
        config = _config_of(base)
        if config.model_type not in FAMILIES:
            why = f"it is a {config.model_type}, and what works here is {', '.join(FAMILIES)}."
            raise CannotLoad("policy", base, why)
        own = {"trust_remote_code": False}
        # AutoProcessor does not pass the config on, and without it an image processor of a name that transformers no
        # longer knows (Qwen2.5-VL's, in older checkpoints) is an error; with it, it is the family's.
        processor = PROCESSOR_MAPPING[type(config)].from_pretrained(name, config=config, **own)
        own |= {"device_map": {"": device}}  # weights go where they will be, one by one: the CPU holds no second whole
        how = {"dtype": dtype, "attn_implementation": "sdpa", "output_loading_info": True}
        vlm, found = AutoModelForImageTextToText.from_pretrained(base, **how, **own)
        if found["missing_keys"]:  # transformers would go on with random numbers in their place
            raise ValueError(f"its weights lack {', '.join(sorted(found['missing_keys'])[:2])}")
        if base != name:
            add_lora(vlm, folder=name)
        for module in vlm.modules():  # dropout would make the log-probabilities of sampling and of training differ
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0
        _require_finite(vlm)
        context, sam = load_lens(Path(name), segmenter) if Path(name, "lens.json").exists() else (None, None)
        policy = Policy(vlm, processor, image_size, max_pixels, context, sam)
        policy.encode([Image.new("RGB", (64, 64))], ["?"])  # a processor that cannot work shows here
        own_patch = processor.image_processor.patch_size, processor.image_processor.merge_size
        if own_patch != (policy.patch, policy.factor // policy.patch):
            raise ValueError(f"its processor cuts pictures into patches of {own_patch}, and the model reads others")
    except (CannotLoad, ModuleNotFoundError):
        raise
    except OSError as error:
        why = "neither a usable folder here nor to be had from the Hugging Face Hub, or not known to this transformers."
        raise CannotLoad("policy", base, why) from error
    except Exception as error:  # four libraries read a stranger's files here, and each fails in its own ways
        raise CannotLoad("policy", base, f"{_sentence(error)}.") from error
    return policy.to(device)


def _base_of(folder: str) -> str:
    """Where the model lies that a folder's LoRA belongs to; the folder itself if it holds none."""
    lora = Path(folder, "adapter_config.json")
    if not lora.exists():
        return folder
    return find(json.loads(lora.read_text(encoding="utf-8"))["base_model_name_or_path"])


def _config_of(base: str):
    """A folder's or Hub id's configuration. ValueError where it asks for far more than the folder's weights hold: its
    numbers would take all memory, for tensors that are then found not to fit."""
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    files = list(Path(base).glob("*.safetensors"))
    if files:
        tensors = 0
        for file in files:
            with safe_open(file, "pt") as held:
                tensors += len(held.keys())
        told = json.loads(Path(base, "config.json").read_text(encoding="utf-8"))
        for part in (told, told.get("text_config") or {}, told.get("vision_config") or {}):
            if (layers := max(part.get("num_hidden_layers") or 0, part.get("depth") or 0)) > tensors:
                raise ValueError(f"its config.json asks for {layers:,} layers; its files hold {tensors} tensors")
    # Else a folder may bring a model's code with it, after a question.
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    if files and config.model_type in FAMILIES:
        with no_init_weights(), torch.device("meta"):  # nothing is allocated
            asked = sum(p.numel() for p in AutoModelForImageTextToText.from_config(config).parameters())
        size = sum(file.stat().st_size for file in files)
        if asked > 4 * size:  # a weight takes 4 bits or more, and one that is tied is there once
            raise ValueError(f"its config.json asks for {asked:,} weights, and its files have {size:,} bytes")
    return config


def load_lens(folder: Path, segmenter: str = "") -> tuple[ContextModule, Segmenter]:
    """LENS: the context module and SAM2 with its tuned mask decoder, from lens.json and lens.safetensors beside a VLM.

    CannotLoad where the two files do not fit each other, or name a SAM2 that the user has to name (`segmenter`).
    """
    try:
        config = json.loads((folder / "lens.json").read_text(encoding="utf-8"))
        state = load_file(folder / "lens.safetensors")
        parts = _under(state, "context.")
        sam = load_segmenter(segmenter_to_follow(config["segmenter"], segmenter))
        sam.mask_decoder.load_state_dict(_under(state, "mask_decoder."))
        if config["context"].get("layers", 0) > len(parts):
            raise ValueError(f"{len(parts)} tensors for {config['context']['layers']} layers")
        with torch.device("meta"):  # no memory for what lens.json says, only for what the file holds
            context = ContextModule(**config["context"])
        context.load_state_dict(parts, assign=True)
    except CannotLoad:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise CannotLoad("policy", str(folder), f"lens.json: {_sentence(error)}.") from error
    return context, sam


def add_lora(vlm, rank: int = 0, folder: str | Path | None = None) -> None:
    """Freeze a VLM and put a low-rank adapter on its language model's linear layers: a new one, which changes nothing
    yet (B = 0 in W + 2 B A), or the one saved in `folder`, whose layers are named in a list, or as here.

    The adapter is float32 whatever the frozen weights are held in: those are only read, and 16 bits do for that.
    """
    try:
        from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
    except ModuleNotFoundError as error:
        name = str(folder or vlm.name_or_path)
        raise CannotLoad("policy", name, "a LoRA needs one more package: pip install peft") from error
    # The language model's alone: the vision towers of the families call their layers by different names.
    names = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
    if folder:
        config = LoraConfig.from_pretrained(str(folder))
        state = load_file(Path(folder, "adapter_model.safetensors"))
        # A large rank would take all memory before it is found not to fit.
        if {v.shape[0] for k, v in state.items() if ".lora_A." in k} != {config.r}:
            raise ValueError(f"its adapter_config.json says rank {config.r}, and its tensors have another")
        patterns = [config.exclude_modules, config.layers_pattern, config.rank_pattern, config.alpha_pattern]
        if any(patterns) or isinstance(config.target_modules, str) and config.target_modules != names:
            # Matching one may never end.
            raise ValueError("its adapter_config.json has a pattern of its own: name the layers, as a list")
    else:
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, lora_dropout=0.0)
    vlm.requires_grad_(False)
    vlm.add_adapter(config)
    for p in vlm.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    if folder:
        state = {k.removeprefix("base_model.model."): v for k, v in state.items()}
        if wrong := get_peft_model_state_dict(vlm, save_embedding_layers=False).keys() ^ state.keys():
            raise ValueError(f"its adapter and the model differ in {len(wrong)} tensors, {min(wrong)} among them")
        set_peft_model_state_dict(vlm, state)


# -------------------------------------------------------------------------------------------------------- the segmenter


@dataclasses.dataclass
class Embeddings:
    """SAM2's view of I pictures."""

    features: Tensor  # (I, c, h / 4, w / 4)
    fine: list[Tensor]  # (I, c / 8, h, w) and (I, c / 4, h / 2, w / 2): two finer levels, for sharp borders
    sizes: list[tuple[int, int]]  # (width, height) of each picture


class Segmenter(nn.Module):
    """SAM2 on still pictures, many pictures and objects at once.

        picture      --image encoder, once-->  features, two finer levels  --+
                                                                             +--mask decoder-->  4 masks, 4 IoUs
        box, points  --prompt encoder------->  k + 3 sparse tokens  ---------+
        (LENS: context queries  --connector->  K sparse tokens)

    The package's SAM2ImagePredictor does the same, at 1024 x 1024 only, and decodes picture by picture; a test holds
    the two equal.
    """

    MEAN = (0.485, 0.456, 0.406)
    STD = (0.229, 0.224, 0.225)

    def __init__(self, image_encoder, prompt_encoder, mask_decoder, no_mem_embed: Tensor, image_size: int):
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.no_mem_embed = nn.Parameter(no_mem_embed)
        self.image_size = image_size
        self.name = ""  # where it was loaded from

    @classmethod
    def from_sam2(cls, sam) -> Segmenter:
        """Of a model of the sam2 package (sam2.build_sam.build_sam2), whose parts it shares."""
        parts = (sam.image_encoder, sam.sam_prompt_encoder, sam.sam_mask_decoder, sam.no_mem_embed)
        return cls(*parts, sam.image_size)

    @property
    def device(self) -> torch.device:
        return self.no_mem_embed.device

    @property
    def in_16_bits(self) -> bool:
        """Does the image encoder, which is nearly all of SAM2's cost, compute in bfloat16 where that is safe?"""
        return self.device.type == "cuda"

    def embed(self, images: Sequence[Image.Image], chunk: int = 16) -> Embeddings:
        """I RGB pictures of any sizes -> Embeddings. The image encoder sees each once (`chunk` at a time); everything
        after it is cheap. ValueError for no picture, and for one that is not RGB."""
        if not images:
            raise ValueError("no pictures to embed")
        _require_rgb(images)
        size = (self.image_size, self.image_size)  # SAM2 squares every picture
        mean, std = (torch.tensor(v, device=self.device)[:, None, None] for v in (self.MEAN, self.STD))
        parts = []
        for at in range(0, len(images), chunk):
            batch = [torch.from_numpy(np.array(image)).to(self.device) / 255 for image in images[at : at + chunk]]
            batch = [x.permute(2, 0, 1)[None] for x in batch]
            batch = torch.cat([F.interpolate(x, size, mode="bilinear", antialias=True) for x in batch])
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.in_16_bits):
                levels = self.image_encoder(((batch - mean) / std).to(self.no_mem_embed.dtype))["backbone_fpn"]
                # "No memory of earlier frames", which SAM2 adds for still pictures.
                features = levels[2] + self.no_mem_embed.view(1, -1, 1, 1)
                found = (features, self.mask_decoder.conv_s0(levels[0]), self.mask_decoder.conv_s1(levels[1]))
            parts.append(tuple(x.to(self.no_mem_embed.dtype) for x in found))
        features, *fine = map(torch.cat, zip(*parts, strict=True))
        return Embeddings(features, fine, [image.size for image in images])

    def decode(self, embeddings: Embeddings, index: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Sparse prompt tokens (N, n, c) for pictures index (N,) -> mask logits (N, 4, h, w) and predicted IoUs (N, 4).

        Output 0 is SAM2's single mask; 1-3 are its three proposals for an ambiguous prompt.
        """
        dense = self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        masks, ious, _, _ = self.mask_decoder.predict_masks(
            image_embeddings=embeddings.features[index],  # (N, c, h / 4, w / 4): each object's own copy of its picture
            image_pe=self.prompt_encoder.get_dense_pe(),  # where each place of that grid is
            sparse_prompt_embeddings=tokens,
            dense_prompt_embeddings=dense.expand(len(index), -1, *embeddings.features.shape[-2:]),  # "no mask given"
            repeat_image=False,  # the pictures are as many as the objects already
            high_res_features=[level[index] for level in embeddings.fine],  # finer borders
        )
        return masks, ious

    def prompt_tokens(self, boxes: Tensor, points: Tensor, labels: Tensor) -> Tensor:
        """Boxes (N, 4) and points (N, k, 2) with labels (N, k) (1 on the object, 0 beside it), in fractions of the
        picture (0-1) -> sparse tokens (N, k + 3, c): two corners, the points, and the "no more points" token."""
        corners = torch.tensor([2, 3], device=boxes.device).expand(len(boxes), 2)
        coords = torch.cat([boxes.view(-1, 2, 2), points], 1) * self.image_size
        return self.prompt_encoder((coords, torch.cat([corners, labels], 1)), None, None)[0]

    @torch.no_grad()
    def segment(
        self,
        embeddings: Embeddings,
        index: Sequence[int],  # (N,) which picture each object is on
        boxes: np.ndarray,  # (N, 4) ORIGINAL pixels; what lies outside the picture is moved to its edge
        points: np.ndarray,  # (N, k, 2) ORIGINAL pixels
        labels: np.ndarray,  # (N, k) 1: on the object, 0: beside it
        chunk: int = 64,  # objects in the mask decoder at a time: each holds its own copy of the picture's features
    ) -> Iterator[Tensor]:
        """N objects, boxes (N, 4) and points (N, k, 2) in ORIGINAL pixels -> N masks (H, W) bool at their pictures'
        original sizes: of three proposals, the best by SAM2's own prediction of its IoU. One after the other: who joins
        them (union) need not hold them all, of 12 megapixels each maybe."""
        if not len(index):
            return
        # SAM2 squares every picture, so a fraction of the side is all that it needs to know of a coordinate.
        index_t = torch.as_tensor(list(index), device=self.device)
        sizes = torch.tensor([embeddings.sizes[i] for i in index], dtype=torch.float64).view(-1, 1, 2)

        def unit(xy: np.ndarray) -> Tensor:
            xy = torch.as_tensor(xy, dtype=torch.float64).view(len(index), -1, 2)
            return (xy / sizes).clamp(0, 1).to(self.no_mem_embed)

        tokens = self.prompt_tokens(unit(boxes).flatten(1), unit(points), torch.as_tensor(labels, device=self.device))
        for at in torch.arange(len(index), device=self.device).split(chunk):
            logits, ious = self.decode(embeddings, index_t[at], tokens[at])
            # Of the three proposals the one that SAM2 itself thinks best, as in Seg-Zero's code [C].
            best = logits[:, 1:][torch.arange(len(at)), ious[:, 1:].argmax(-1)]  # (n, h, w)
            for logit, i in zip(best, index_t[at].tolist(), strict=True):
                yield self.resize(logit, embeddings.sizes[i][::-1]) > 0

    @torch.no_grad()
    def union(self, embeddings: Embeddings, index: Sequence[int], answers: Sequence[Sequence]) -> list[Tensor]:
        """B answers, lists of objects with .box, .points, .negative_points (rewards.Instance) in ORIGINAL pixels -> B
        masks (H, W) bool.

        The mask of an answer is the union over its objects; an answer without objects gets an empty mask and costs
        nothing. All objects of all answers with the same number of points share the decoder's batches (padding points
        would change them).
        """
        masks = [torch.zeros(embeddings.sizes[i][::-1], dtype=torch.bool, device=self.device) for i in index]
        # (positive, negative points) -> the objects that have so many, each with the number of its answer
        jobs: dict[tuple[int, int], list] = {}
        for b, objects in enumerate(answers):
            for o in objects:
                jobs.setdefault((len(o.points), len(o.negative_points)), []).append((b, o))
        for (positive, negative), group in jobs.items():
            boxes = np.array([o.box for _, o in group], dtype=np.float64)
            points = np.array([[*o.points, *o.negative_points] for _, o in group], dtype=np.float64)
            labels = np.tile(np.int32([1] * positive + [0] * negative), (len(group), 1))
            points = points.reshape(*labels.shape, 2)  # also where there are none: (n, 0, 2)
            found = self.segment(embeddings, [index[b] for b, _ in group], boxes, points, labels)
            for (b, _), mask in zip(group, found, strict=True):
                masks[b] |= mask
        return masks

    @staticmethod
    def resize(logits: Tensor, shape: Sequence[int]) -> Tensor:
        """Mask logits (h, w) -> (H, W) = `shape`, bilinear. (A mask's shape: height first, where a picture's size has
        the width first.)"""
        return F.interpolate(logits[None, None].float(), tuple(shape), mode="bilinear", align_corners=False)[0, 0]


def mask_iou(a: Tensor, b: Tensor) -> float:
    """IoU of two (H, W) bool masks; two empty masks agree (1)."""
    union = (a | b).sum().item()
    return (a & b).sum().item() / union if union else 1.0


def sam2_parts() -> dict:
    """What a segmenter.yaml may name: the classes of SAM2's parts, and torch.zeros for its one loose vector."""
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam.mask_decoder import MaskDecoder
    from sam2.modeling.sam.prompt_encoder import PromptEncoder
    from sam2.modeling.sam.transformer import TwoWayTransformer

    parts = (Hiera, FpnNeck, ImageEncoder, PositionEmbeddingSine, MaskDecoder, PromptEncoder, TwoWayTransformer)
    return {f"{part.__module__}.{part.__name__}": part for part in parts} | {"torch.zeros": torch.zeros}


def build_segmenter(config: str | Path) -> Segmenter:
    """A Segmenter with random weights from a YAML file that names the classes of its parts (toy/sam2 has one).

    ValueError where it names anything but sam2_parts: what a file names here is called.
    """
    import yaml

    if Path(config).stat().st_size > 20_000:
        raise ValueError("more than 20 kB, where a segmenter's configuration has about one")
    text = Path(config).read_text(encoding="utf-8")
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
        raise ValueError("an alias (*name), of which nine lines can unfold to billions")

    known = sam2_parts()

    def made(node):
        if isinstance(node, list):
            return [made(x) for x in node]
        if not isinstance(node, dict):
            if isinstance(node, (int, float)) and not abs(node) <= 10_000:
                raise ValueError(f"a number of {node}, where SAM2's largest has some thousands")
            return node
        if "weights_path" in node:  # Hiera would read that file
            raise ValueError("it names a file of weights: they lie beside it, in segmenter.safetensors")
        parts = {key: made(value) for key, value in node.items()}
        if (target := parts.pop("_target_", None)) is None:
            return parts
        if target not in known:
            raise ValueError(f"it names {target!r}, which is no part of SAM2")
        return known[target](**parts)

    segmenter = Segmenter(**made(yaml.safe_load(text)))
    size = segmenter.image_size
    if type(size) is not int or list(segmenter.prompt_encoder.input_image_size) != [size, size]:  # boxes would be moved
        raise ValueError(f"an image_size of {size!r:.40}, which is not the prompt encoder's input_image_size")
    return segmenter


def segmenter_to_follow(named: str, given: str = "") -> str:
    """Which segmenter to load where a checkpoint (its recipe.json or lens.json) names `named`, and the user `given`.

    A checkpoint's word is enough for a Hub id of the package's, its checkpoint files, and the one shipped here. Any
    other folder says itself what it is built of, so the user has to name it: CannotLoad, which says so, if not.
    """
    from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES

    shipped = Path(__file__).resolve().parent / "toy" / "sam2"

    def plain(name: str) -> bool:
        known = name in HF_MODEL_ID_TO_FILENAMES or Path(find(name)).resolve() == shipped
        return known or name.endswith(".pt") and not Path(find(name)).is_dir()  # built as the package says

    if plain(named):
        return named
    if given and not plain(given):
        return given
    why = "a checkpoint names it, and such a folder says which code to build it of: if you trust it, --segmenter it."
    raise CannotLoad("segmenter", named, why)


def load_segmenter(name: str, device: str | torch.device = "cpu") -> Segmenter:
    """SAM2, frozen and in eval mode, from one of: a Hub id ("facebook/sam2-hiera-large"); one of the package's
    checkpoint files, known by its file name, or "CONFIG.yaml:FILE.pt" for any other, CONFIG.yaml being one of the
    package's own; a folder with segmenter.yaml (build_segmenter) and segmenter.safetensors.

    CannotLoad, an OSError, where it cannot be had.
    """
    import yaml
    from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES, build_sam2, build_sam2_hf

    name = str(name)
    folder = Path(find(name))
    known = {file: config for config, file in HF_MODEL_ID_TO_FILENAMES.values()}
    try:
        if name in HF_MODEL_ID_TO_FILENAMES:
            segmenter = Segmenter.from_sam2(build_sam2_hf(name, device="cpu"))
        elif (folder / "segmenter.yaml").exists():
            segmenter = build_segmenter(folder / "segmenter.yaml")
            segmenter.load_state_dict(load_file(folder / "segmenter.safetensors"))
        else:
            config, _, checkpoint = name.rpartition(":")
            config = config or known[Path(checkpoint).name]
            if config not in known.values():  # hydra would look for ../../anything.yaml, and build what that names
                raise KeyError(config)
            segmenter = Segmenter.from_sam2(build_sam2(config, checkpoint, device="cpu"))
        _require_finite(segmenter)
    except (OSError, KeyError) as error:
        why = "it is no checkpoint or folder with segmenter.yaml here, and the Hugging Face Hub did not give it."
        raise CannotLoad("segmenter", name, why) from error
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise CannotLoad("segmenter", name, f"{_sentence(error)}.") from error
    segmenter.name = name
    return segmenter.eval().requires_grad_(False).to(device)


# ------------------------------------------------------------------------------------------------- LENS: context module


class ContextModule(nn.Module):
    """LENS section 3: K learned queries read the finished sequence; a connector makes SAM2's prompt tokens of them.

        [ prompt | reasoning, box | q_1 ... q_K ] --causal VLM--> (B, K, d) --connector--> (B, K, c) --> SAM2

    The queries come after their completion, so no token sees them: they read the policy and do not disturb it.

    connector "transformer" (the paper; 206.3 M parameters at d = 2048, Table A4): learned positions, 4 pre-LayerNorm
    blocks (full attention, 16 heads, MLP ratio 4, quick-GELU), then Linear(d, d)-GELU-Linear(d, c). connector "mlp"
    (Table 4's weaker one): no blocks, a two-layer MLP per query in their place, the same projection. collapse (released
    code): a convolution over the K states makes them one token before the projection (paper: K tokens).

    >>> context = ContextModule(d=64, c=32, num_queries=8, layers=1)
    >>> text = torch.zeros(2, 5, 64)  # embeddings of B = 2 finished sequences
    >>> embeds = torch.cat([text, context.queries.expand(2, -1, -1)], 1)  # the queries stand behind, at places 5 to 12
    >>> states = embeds  # what a causal language model makes of embeds, its last hidden states
    >>> context(states[:, 5:]).shape  # SAM2's sparse prompt tokens
    torch.Size([2, 8, 32])
    """

    def __init__(
        self,
        d: int,  # width of the VLM's states
        c: int = 256,  # width of SAM2's prompt tokens: Embeddings.features.shape[1]
        num_queries: int = 64,  # K
        connector: str = "transformer",  # or "mlp"
        collapse: bool = False,
        layers: int = 4,
    ):
        super().__init__()
        self.config = dict(d=d, c=c, num_queries=num_queries, connector=connector, collapse=collapse, layers=layers)
        self.queries = nn.Parameter(torch.randn(num_queries, d) * 0.02)
        if connector == "transformer":
            from transformers.activations import QuickGELUActivation

            self.positions = nn.Parameter(torch.randn(num_queries, d) * 0.02)
            how = dict(activation=QuickGELUActivation(), layer_norm_eps=1e-6, batch_first=True, norm_first=True)
            blocks = [nn.TransformerEncoderLayer(d, 16, 4 * d, dropout=0.0, **how) for _ in range(layers)]
            self.blocks = nn.Sequential(*blocks)
        elif connector == "mlp":
            self.positions = None
            self.blocks = nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, d))
        else:
            raise ValueError(f"connector must be 'transformer' or 'mlp', not {connector!r}")
        self.collapse = nn.Conv1d(d, d, num_queries) if collapse else None
        self.project = nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, c))

    def forward(self, states: Tensor) -> Tensor:
        """States of the queries (B, K, d) -> sparse prompt tokens (B, K, c), or (B, 1, c) collapsed. ValueError for
        other states: they might broadcast."""
        if states.shape[1:] != self.queries.shape:
            raise ValueError(
                f"states {tuple(states.shape)} for {tuple(self.queries.shape)} queries: (B, K, d) is meant"
            )
        x = states.to(self.project[0].weight.dtype)
        x = self.blocks(x if self.positions is None else x + self.positions)  # (B, K, d)
        if self.collapse is not None:
            x = self.collapse(x.transpose(1, 2)).transpose(1, 2)  # (B, 1, d)
        return self.project(x)  # (B, K or 1, c)


def dice_loss(logits: Tensor, target: Tensor, eps: float = 1.0) -> Tensor:
    """1 - (2 |A B| + eps) / (|A| + |B| + eps) on probabilities, per mask: (B, H, W) -> (B,). 0 where both are empty."""
    p, t = logits.sigmoid().flatten(1), target.to(logits).flatten(1)
    return 1 - (2 * (p * t).sum(-1) + eps) / (p.sum(-1) + t.sum(-1) + eps)


def mask_loss(logits: Tensor, target: Tensor, focal: bool = False) -> Tensor:
    """LENS's L_seg per mask, (B, H, W) logits and truth (bool or float) -> (B,): dice + mean binary cross-entropy (its
    code), or + mean focal loss (the paper's example; gamma 2, alpha 0.25, as in the focal loss's own paper).

    Both at one resolution, the truth's: Segmenter.resize takes the logits there.
    """
    truth = target.to(logits)
    if focal:
        from torchvision.ops import sigmoid_focal_loss

        each = sigmoid_focal_loss(logits, truth)
    else:
        each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return dice_loss(logits, target) + each.flatten(1).mean(-1)
