"""What lies on a simulated node's disk: the recorded models, and a catalog for demos and benchmarks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from router.simulation.facts import GIB, Weights

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Details:
    family: str
    parameter_size: str
    quantization: str
    parent_model: str = ""
    context_length: int | None = None  # shown by /api/tags of recent versions only
    embedding_length: int | None = None


@dataclass(frozen=True, slots=True)
class DiskModel:
    """One manifest. `is_embedding` is what llama-server can do, which `capabilities` does not always say."""

    name: str  # display form, tag included
    digest: str
    size: int
    weights: Weights
    details: Details
    capabilities: tuple[str, ...] = ("completion",)
    is_embedding: bool = False
    dimensions: int = 384
    parameters: Mapping[str, int | str] | None = None
    template: str = "{{ .Prompt }}"
    modified_ns: int = 0
    is_cloud: bool = False

    def __repr__(self) -> str:
        return f"<DiskModel {self.name} {self.digest[:12]} {self.size / GIB:.2f} GiB {'+'.join(self.capabilities)}>"

    @property
    def num_ctx(self) -> int | None:
        """What its Modelfile sets."""
        wanted = (self.parameters or {}).get("num_ctx")
        return wanted if isinstance(wanted, int) else None

    def can(self, capability: str) -> bool:
        return capability in self.capabilities


def digest_of(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


GEMMA_TEMPLATE = (
    "{{- range $i, $_ := .Messages }}{{- $last := eq (len (slice $.Messages $i)) 1 }}\n"
    '{{- if or (eq .Role "user") (eq .Role "system") }}<start_of_turn>user\n{{ .Content }}<end_of_turn>\n'
    "{{ if $last }}<start_of_turn>model\n{{ end }}\n"
    '{{- else if eq .Role "assistant" }}<start_of_turn>model\n{{ .Content }}{{ if not $last }}<end_of_turn>\n'
    "{{ end }}\n{{- end }}\n{{- end }}"
)

# Sizes: recordings catalog/ps and quirks/num-ctx-larger-ps (301926972 bytes with 2048 tokens, 546570239 with 32768).
GEMMA_WEIGHTS = Weights(
    blob="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    file_bytes=253_112_480,
    loaded_bytes=301_926_972,
    train_ctx=32768,
    default_ctx=2048,
    bytes_per_ctx_token=(546_570_239 - 301_926_972) / 30720,
    load_s=1.87,  # recordings README, a cold load on two cores
    prefill_tps=347.0,
    decode_tps=35.0,
)
MINILM_WEIGHTS = Weights(
    blob=digest_of("all-minilm:22m"),
    file_bytes=45_949_000,
    loaded_bytes=51_359_251,
    train_ctx=512,
    default_ctx=512,
    load_s=0.26,
    prefill_tps=2000.0,
)

_GEMMA_DETAILS = Details("gemma3", "268.10M", "Q4_K_M", "", 32768, 640)
_GEMMA_CHILD = replace(_GEMMA_DETAILS, parent_model="gemma3:270m")
_SECOND_NS = 1_000_000_000


def _gemma(name: str, digest: str, size: int, modified_ns: int, *more: str, child: bool = True) -> DiskModel:
    return DiskModel(
        name=name,
        digest=digest,
        size=size,
        weights=GEMMA_WEIGHTS,
        details=_GEMMA_CHILD if child else _GEMMA_DETAILS,
        capabilities=("completion", *more),
        dimensions=640,
        parameters={"num_ctx": 2048, "stop": "<end_of_turn>"},
        template=GEMMA_TEMPLATE,
        modified_ns=modified_ns,
    )


_T = 1_795_396_500 * _SECOND_NS  # recording catalog/tags

RECORDED_MODELS: tuple[DiskModel, ...] = (
    _gemma(
        "gpt-4:latest",
        "0804ca337e15873275fc6a868a68d95061ebe0c0c6a30047b3b588c8e3521649",
        253_113_589,
        _T + 51_264_038_989,
        child=False,
    ),
    DiskModel(
        name="all-minilm:22m",
        digest="3916e706937ab68937981d4bebf584c3ea8e2e9ab78cd6306bfa9741c77ddb9e",
        size=45_949_364,
        weights=MINILM_WEIGHTS,
        details=Details("bert", "22.57M", "F16"),
        is_embedding=True,
        modified_ns=_T + 51_235_188_421,
    ),
    _gemma(
        "gemma-fim:latest",
        "b56c8fa5b719b81d01d0e16f1d553569779f520edae598e7dad7dcbe4fd4bfc5",
        253_113_342,
        _T + 50_087_992_343,
        "insert",
    ),
    _gemma(
        "gemma-think:latest",
        "1c89eb88e0299b7aeb037c329c0e1698ede208457fb125df2118c50e43434e03",
        253_113_646,
        _T + 50_005_711_396,
        "thinking",
    ),
    _gemma(
        "gemma-tools:latest",
        "e91ea35bb8207350d6b0be1ba3323d75853d12087e17d7bf0b5f19e8f64c6f8e",
        253_113_908,
        _T + 49_920_038_941,
        "tools",
    ),
    _gemma(
        "gemma3:270m",
        "0804ca337e15873275fc6a868a68d95061ebe0c0c6a30047b3b588c8e3521649",
        253_113_589,
        _T + 20_821_964_708,
        child=False,
    ),
)

_V24 = {  # recording v0.24/tags: other manifests for the same names, which is what digest skew looks like
    "gpt-4:latest": ("e5af5b372ded0b8a407281b9d9ac42f7d6a995e9eb31dfd48602fd3ec4ac929b", 253_113_851, 34_000_098_453),
    "all-minilm:22m": ("5d554570aecfd6a5764177367e8cf6446a6c3f53f2b0616a0461e1ec7a630919", 45_949_478, 54_585_634_029),
    "gemma-fim:latest": (
        "a4b81d1ef5e0ea28eba615ddae666bc8f89c5ff6814fbd5410a84f952e9e769d",
        253_113_604,
        33_444_086_987,
    ),
    "gemma-think:latest": (
        "2bb02225c6ab5c2415e39b4820276ff4787157e0b09eddf8edf9dbf6dc1ecc30",
        253_113_908,
        33_380_100_136,
    ),
    "gemma-tools:latest": (
        "f1e0736707055ea478400b83942a1c7b9cd53aeee7ed568ea781ba3e64bc61a9",
        253_114_170,
        33_317_130_408,
    ),
    "gemma3:270m": ("e5af5b372ded0b8a407281b9d9ac42f7d6a995e9eb31dfd48602fd3ec4ac929b", 253_113_851, 33_248_174_134),
}
_T24 = 1_795_398_180 * _SECOND_NS
_V24_LOADED = {GEMMA_WEIGHTS.blob: 490_381_824, MINILM_WEIGHTS.blob: 85_149_696}  # recording v0.24/ps-two

RECORDED_MODELS_V24: tuple[DiskModel, ...] = tuple(
    replace(
        model,
        digest=_V24[model.name][0],
        size=_V24[model.name][1],
        modified_ns=_T24 + _V24[model.name][2],
        details=replace(model.details, parent_model=""),
        weights=replace(model.weights, loaded_bytes=_V24_LOADED[model.weights.blob]),
    )
    for model in RECORDED_MODELS
)


def model_of(
    name: str,
    *,
    gib: float,
    family: str = "llama",
    parameter_size: str = "",
    capabilities: tuple[str, ...] = ("completion", "tools"),
    is_embedding: bool = False,
    load_s: float | None = None,
    prefill_tps: float = 4000.0,
    decode_tps: float = 60.0,
    slots: int | None = None,
    train_ctx: int = 131_072,
    same_weights_as: str | None = None,
    dimensions: int = 768,
) -> DiskModel:
    """A model on disk from a name and a size; a load reads 1 GiB a second unless `load_s` says otherwise."""
    size = int(gib * GIB)
    weights = Weights(
        blob=digest_of("blob", same_weights_as or name),
        file_bytes=size,
        loaded_bytes=int(size * 1.15),
        train_ctx=train_ctx,
        bytes_per_ctx_token=size / 131_072 / 8,
        load_s=gib if load_s is None else load_s,
        prefill_tps=prefill_tps,
        decode_tps=decode_tps,
        slots=slots,
    )
    return DiskModel(
        name=name if ":" in name else f"{name}:latest",
        digest=digest_of("manifest", same_weights_as or name),
        size=size,
        weights=weights,
        details=Details(family, parameter_size or f"{gib * 1.6:.1f}B", "Q4_K_M", "", train_ctx, dimensions),
        capabilities=("embedding",) if is_embedding else capabilities,
        is_embedding=is_embedding,
        dimensions=dimensions,
        modified_ns=_T,
    )


DEMO_MODELS: tuple[DiskModel, ...] = (
    model_of("llama3.2:3b", gib=1.9, parameter_size="3.2B", prefill_tps=6000, decode_tps=110),
    model_of(
        "qwen3:8b",
        gib=4.9,
        family="qwen3",
        parameter_size="8.2B",
        capabilities=("completion", "tools", "thinking"),
        train_ctx=40960,
        prefill_tps=3500,
        decode_tps=70,
    ),
    model_of(
        "gemma3:12b",
        gib=7.6,
        family="gemma3",
        parameter_size="12.2B",
        capabilities=("completion", "vision"),
        prefill_tps=2200,
        decode_tps=45,
    ),
    model_of(
        "gpt-oss:20b",
        gib=12.8,
        family="gptoss",
        parameter_size="20.9B",
        capabilities=("completion", "tools", "thinking"),
        prefill_tps=2800,
        decode_tps=80,
    ),
    model_of("qwen2.5-coder:14b", gib=8.4, family="qwen2", capabilities=("completion", "tools", "insert")),
    model_of(
        "nomic-embed-text",
        gib=0.26,
        family="nomic-bert",
        parameter_size="137M",
        is_embedding=True,
        train_ctx=8192,
        prefill_tps=30_000,
    ),
    model_of("whisper-sim", gib=0.5, family="gemma3n", capabilities=("completion", "audio"), decode_tps=120),
)
