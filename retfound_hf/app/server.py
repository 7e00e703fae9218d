"""Server of the page: offline, on loopback unless told otherwise, with strict headers; the command `app`."""

import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BadArgumentError, missing_extra, require_range
from ..options import parse_arguments
from .uploads import Limits, patch_gradio, private_folder

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Gradio compiles its templates in the browser, hence the two `unsafe`; everything comes from this server alone.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
HEADERS = {b"content-security-policy": POLICY.encode(), b"referrer-policy": b"no-referrer",
           b"x-content-type-options": b"nosniff"}  # fmt: skip
# Before gradio is imported: no telemetry, no check for a newer version.
OFFLINE = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
PASSWORD = "RETFOUND_APP_PASSWORD"


class SafeHeaders:
    """ASGI middleware that adds `HEADERS` to every answer."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        async def send_with_headers(event: dict[str, Any]) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [*event["headers"], *HEADERS.items()]
            await send(event)

        await self.app(scope, receive, send_with_headers)


def serve(
    model: str, reconstruction_model: str | None = None, host: str = LOOPBACK[0], port: int = 7860,
    credentials: tuple[str, str] | None = None, limits: Limits | None = None,
) -> Any:  # fmt: skip
    """Load the model, answer once to warm up, and serve the page from threads of its own.

    Args:
        model: fine-tuned folder, adapter folder or Hub id; or a folder of pretraining, for its reconstructions alone.
        reconstruction_model: folder of pretraining whose reconstructions are shown beside the classifier.
        host: address to listen on.
        port: port to listen on.
        credentials: user and password that a visitor has to give.
        limits: for uploads.

    Returns:
        The gradio `Blocks`: `block_thread()` serves until interrupted, `close()` stops.

    Raises:
        MissingPackageError: gradio is not installed.
        BadArgumentError: the port is taken.
        BadModelError: neither a classifier nor a decoder in the folder.
    """
    if importlib.util.find_spec("gradio") is None:
        raise missing_extra("gradio", "app")
    _check_port(host, port)
    private_folder()
    os.environ.update(OFFLINE)
    from PIL import Image
    from starlette.middleware import Middleware

    from ..models.loading import read_config
    from .markup import HERE, theme
    from .page import build_page
    from .predictor import Reader, Reconstructor

    patch_gradio()
    limits = limits or Limits()
    is_autoencoder = "ForPreTraining" in str(read_config(model).architectures)
    reader = None if is_autoencoder else Reader(model)
    decoder = model if is_autoencoder else reconstruction_model
    if reader is not None:
        reader.answer(Image.new("RGB", (64, 64)))  # so that the first visitor does not wait for what is done once
    page = build_page(reader, None if decoder is None else Reconstructor(decoder), limits)
    page.queue(default_concurrency_limit=2, max_size=64)
    # In the head and not as `css`, of which gradio narrows every rule to its own container.
    style = f"<style>{(HERE / 'style.css').read_text(encoding='utf-8')}</style>"
    page.launch(
        server_name=host, server_port=port, auth=credentials, max_file_size=limits.upload_bytes, theme=theme(),
        head=style, app_kwargs={"middleware": [Middleware(SafeHeaders)]}, prevent_thread_lock=True,
        quiet=True, share=False, ssr_mode=False, pwa=False, mcp_server=False, footer_links=[], run_history=False,
        enable_monitoring=False, show_error=False, inbrowser=False,
    )  # fmt: skip
    return page


def _check_port(host: str, port: int) -> None:
    """Raise before a large model is loaded, if the page could not be served."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = f"`port={port}` on {host} cannot be used: {error.strerror or error}; choose another"
            raise BadArgumentError(reason, field="port", value=port) from error


@dataclass
class AppArguments:
    model: str = field(metadata={"help": "fine-tuned folder, adapter folder or Hub id; or a folder of pretraining"})
    reconstruction_model: str | None = field(
        default=None, metadata={"help": "folder of pretraining for a further tab"}
    )
    host: str = field(default=LOOPBACK[0], metadata={"help": "address to listen on; 0.0.0.0 for the whole network"})
    port: int = field(default=7860, metadata={"help": "port to listen on"})
    user: str | None = field(
        default=None,
        metadata={"help": f"ask visitors for this name and a password, from --password_file or {PASSWORD}"},
    )
    password_file: str | None = field(default=None, metadata={"help": "file whose first line is the password"})
    max_upload_mb: int = field(default=200, metadata={"help": "largest file that may be uploaded"})
    max_megapixels: int = field(default=100, metadata={"help": "largest image, in millions of pixels"})
    max_images: int = field(default=5000, metadata={"help": "most images of one batch"})

    def __post_init__(self) -> None:
        for name in ("max_upload_mb", "max_megapixels", "max_images"):
            require_range(name, getattr(self, name), 1)
        require_range("port", self.port, 1, 65535)
        if self.password_file is not None and self.user is None:
            reason = "`password_file` needs `user`, the name that goes with the password"
            raise BadArgumentError(reason, field="password_file", value=self.password_file)

    @property
    def limits(self) -> Limits:
        return Limits(self.max_upload_mb * 2**20, self.max_megapixels * 10**6, self.max_images)

    @property
    def credentials(self) -> tuple[str, str] | None:
        """User and password, None without a user. The password is not an option: others can read a command line."""
        if self.user is None:
            return None
        password = os.environ.get(PASSWORD, "")
        if self.password_file is not None:
            try:
                password = Path(self.password_file).read_text(encoding="utf-8").partition("\n")[0].strip()
            except OSError as error:
                reason = f"`password_file={self.password_file}` cannot be read: {error.strerror}"
                raise BadArgumentError(reason, field="password_file", value=self.password_file) from error
        if not password:
            reason = f"`user={self.user}` has no password; set {PASSWORD} or give `password_file`"
            raise BadArgumentError(reason, field="user", value=self.user)
        return self.user, password


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and serve until interrupted."""
    (asked,) = parse_arguments(AppArguments, argv=argv, description="A fine-tuned folder in a browser.")
    page = serve(asked.model, asked.reconstruction_model, asked.host, asked.port, asked.credentials, asked.limits)
    print(f"{asked.model}: http://{asked.host}:{asked.port}  (stop with Ctrl+C)", flush=True)
    if asked.host not in LOOPBACK and asked.user is None:
        print("Everybody who reaches this machine can use the page; ask for a password with --user.", flush=True)
    # A service is stopped by SIGTERM; only an orderly end removes the uploads that are still there.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    page.block_thread()
