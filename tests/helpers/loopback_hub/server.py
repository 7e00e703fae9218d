"""The loopback Hub's server: files with ranges and redirects, uploads, tokens, and connections cut on request."""

import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

from .routes import Routes
from .store import Blob, Refused, Repo, Store

FILE = re.compile(r"^/(?:(?P<kind>dataset|space)s/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)$")
BLOCK = 1 << 16


@dataclass
class Cut:
    """Break off the next `times` requests that match, after `after` bytes of what is sent or received."""

    method: str
    pattern: str
    after: int = 0
    times: int = 1


@dataclass
class LoopbackHub:
    """A Hub at `url` while it is open as a context.

    Tokens: `hf_writer` may write, `hf_reader` may read, and gated files only where its name is in `repo.granted`.
    `requests` holds "METHOD path [range]" of every request so far, `cuts` what is to be broken off.
    """

    store: Store = field(default_factory=Store)
    requests: list[str] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)

    def __enter__(self) -> "LoopbackHub":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._server.hub, self._server.routes = self, Routes(self.store, self.url)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def create(self, name: str, kind: str = "model", **options: bool) -> Repo:
        return self.store.create(kind, name, **options)

    def repo(self, name: str, kind: str = "model") -> Repo:
        return self.store.repos[kind, name]

    def cut(self, method: str, pattern: str, after: int = 0, times: int = 1) -> None:
        """Break off requests whose path holds the regular expression `pattern`."""
        self.cuts.append(Cut(method, pattern, after, times))

    def env(self, home: str | Path, token: str | None = "hf_writer", offline: bool = False) -> dict[str, str]:
        """Environment in which a process speaks to this Hub, with its cache under `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(Path(home) / "hub"),
            "HF_TOKEN": token or "",
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.handle_request()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def handle_request(self) -> None:
        hub: LoopbackHub = self.server.hub
        parts = urlsplit(self.path)
        hub.requests.append(" ".join([self.command, unquote(parts.path), self.headers.get("Range", "")]).strip())
        cut = self.cut_of(parts.path)
        try:
            if self.command == "PUT":
                self.receive(parts.path.removeprefix("/_lfs/"), cut)
            elif parts.path.startswith("/_cdn/"):
                self.send_content(hub.store.large[parts.path.removeprefix("/_cdn/")], {}, cut)
            elif self.command in ("GET", "HEAD") and (found := FILE.match(parts.path)):
                body = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                self.send_file(cut, **body)
            else:
                body = self.read_body()
                if cut is not None:
                    return self.break_off()
                answer = self.server.routes.answer(self.command, parts.path, parts.query, self.token, body)
                self.reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})
        except Refused as refused:
            text = refused.message
            body = text if text.startswith("{") else json.dumps({"error": text})
            headers = {"X-Error-Message": text} if not text.startswith("{") else {}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            self.reply(refused.status, body.encode(), {"Content-Type": "application/json", **headers})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    @property
    def token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ").strip() or None

    def cut_of(self, path: str) -> Cut | None:
        for cut in self.server.hub.cuts:
            if cut.times and cut.method == self.command and re.search(cut.pattern, unquote(path)):
                cut.times -= 1
                return cut
        return None

    def break_off(self) -> None:
        self.close_connection = True
        self.connection.close()

    def body_blocks(self):
        """The request's body in blocks, of a known length or in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            block = self.rfile.read(min(left, BLOCK))
            if not block:
                raise ConnectionResetError
            left -= len(block)
            yield block

    def read_body(self) -> bytes:
        return b"".join(self.body_blocks())

    def receive(self, oid: str, cut: Cut | None) -> None:
        """A large file; what is broken off is forgotten, as a store of whole objects does."""
        received = bytearray()
        for block in self.body_blocks():
            received += block
            if cut is not None and len(received) >= cut.after:
                return self.break_off()
        blob = Blob(bytes(received), is_lfs=True)
        if blob.sha256 != oid:
            raise Refused(400, "", "the content does not have the hash it was announced with")
        self.server.hub.store.large[oid] = blob.content
        self.reply(200, b"", {"ETag": f'"{oid}"'})

    def send_file(self, cut: Cut | None, name: str, revision: str, path: str, kind: str = "model") -> None:
        store: Store = self.server.hub.store
        commit = store.readable(kind, name, self.token).at(revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            text = json.dumps({"error": "Entry not found"}).encode()
            return self.reply(404, text, {**headers, "X-Error-Code": "EntryNotFound"})
        blob = commit.files[path]
        if not blob.is_lfs:
            return self.send_content(blob.content, {**headers, "ETag": f'"{blob.etag}"'}, cut)
        store.large[blob.sha256] = blob.content
        linked = {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content))}
        # Another host name, as the store behind the Hub has one: the client sends it no token.
        store_url = self.server.hub.url.replace("127.0.0.1", "localhost")
        self.reply(302, b"", {**headers, **linked, "Location": f"{store_url}/_cdn/{blob.sha256}"})

    def send_content(self, content: bytes, headers: dict[str, str], cut: Cut | None) -> None:
        """A file, or from a byte on where a range asks for it."""
        wanted = re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range", ""))
        if wanted:
            start, total = int(wanted[1]), len(content)
            stop = min(int(wanted[2]) + 1, total) if wanted[2] else total
            headers = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{total}"}
            content = content[start:stop]
        self.reply(206 if wanted else 200, content, {"Accept-Ranges": "bytes", **headers}, cut)

    def reply(self, status: int, body: bytes, headers: dict[str, str], cut: Cut | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if cut is None else body[: cut.after])
        if cut is not None:
            self.wfile.flush()
            self.break_off()
