"""The settings of the service, read from FINELAP_* environment variables and a .env file.

docs/reference/settings.md documents each of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qsl

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

DEFAULT_CHECKPOINT = "checkpoints/finelap-small"  # bundled; app.inference.engine finds it from any folder
FAISS = "faiss://"  # SQLite and FAISS in `data_dir`, for one process


class Settings(BaseSettings):
    """The service's settings. Arguments take precedence over environment variables, and those over .env."""

    model_config = SettingsConfigDict(env_prefix="FINELAP_", env_file=".env", extra="ignore")

    checkpoint: str = DEFAULT_CHECKPOINT  # a folder, a .pt file, or a Hugging Face Hub id
    device: str = "auto"  # auto, cpu, cuda, cuda:1, …
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    sliding_frames: bool = False  # for a model of whole clips: frames from windows of its length that overlap
    data_dir: Path = Path("data")
    index_url: str = FAISS  # faiss://?files=s3://bucket/prefix, or milvus://host:19530, see index.milvus.client
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    api_keys: Annotated[tuple[str, ...], NoDecode] = ()  # comma-separated; without any, no key is required
    # host names that requests may be sent to, comma-separated; default: see app.server.security
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()  # sites whose pages may call the service, comma-separated
    root_path: str = ""  # the path under which a proxy serves the service, if it passes it on
    reference_roots: Annotated[tuple[Path, ...], NoDecode] = ()  # folders whose files may be clips without a copy
    mcp_write: bool = False  # whether tools of /mcp may change the library
    max_upload_mb: float = Field(512, gt=0)  # per request body; 1 MB is 10^6 bytes
    max_duration_s: float = Field(14_400, gt=0)  # per recording
    max_phrases: int = Field(100, ge=1)  # phrases or labels per request
    max_jobs: int = Field(100, ge=1)  # kept; the oldest finished one makes room for a new one
    max_streams: int = Field(64, ge=0)  # live streams at once
    max_batch_windows: int = Field(16, ge=1)
    max_wait_ms: float = Field(5, ge=0)  # for more items to join a batch; an idle server does not wait
    max_queue_windows: int = Field(512, ge=1)
    request_timeout_s: float = Field(600, gt=0)  # until the response begins
    stop_grace_s: float = Field(18, ge=0)  # for running requests at shutdown; the process exits within 6 s after that
    log_format: Literal["json", "text"] = "text"

    @field_validator("api_keys", "allowed_hosts", "cors_origins", "reference_roots", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, value: str) -> str:
        path = value.rstrip("/")
        if path and not re.fullmatch(r"(?:/[\w.~-]+)+", path, re.ASCII):
            raise ValueError("root_path must be a path such as /sounds")
        return path

    @field_validator("index_url")
    @classmethod
    def _check_index_url(cls, value: str) -> str:
        if value.rstrip("/") == FAISS.rstrip("/"):
            return FAISS
        if value.startswith(f"{FAISS}?"):
            options = dict(parse_qsl(value.partition("?")[2], keep_blank_values=True))
            if options.keys() != {"files"} or "://" not in options["files"]:
                raise ValueError("the only option of faiss:// is files, an address such as s3://bucket/prefix")
            return value
        from index import parse_milvus_url  # imports NumPy, which most commands do without

        parse_milvus_url(value)
        return value

    @property
    def in_folder(self) -> bool:
        """Whether the library is in `data_dir`, perhaps with its audio elsewhere."""
        return self.index_url.partition("?")[0] == FAISS

    @property
    def audio_url(self) -> str:
        """Where a library in `data_dir` has its audio; empty for `data_dir` itself."""
        return dict(parse_qsl(self.index_url.partition("?")[2])).get("files", "") if self.in_folder else ""

    @property
    def max_upload_bytes(self) -> int:
        """`max_upload_mb` in bytes."""
        return int(self.max_upload_mb * 1_000_000)
