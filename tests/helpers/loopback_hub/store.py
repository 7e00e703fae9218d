"""Repositories of the loopback Hub, in memory: commits of files, branches and tags, content by its hash."""

import hashlib
import threading
from dataclasses import dataclass, field

LFS_SUFFIXES = (".safetensors", ".parquet", ".pth", ".bin", ".png", ".jpg", ".npy", ".onnx")
LFS_SIZE = 10 * 2**20


class Refused(Exception):
    """An answer other than success: status, the Hub's error code, and its message."""

    def __init__(self, status: int, code: str = "", message: str = ""):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class Blob:
    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.git_oid

    def described(self, path: str) -> dict:
        """As `tree` and `paths-info` list a file."""
        lfs = {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.git_oid}
        return entry | ({"lfs": lfs} if self.is_lfs else {})


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: dict[str, Blob]


@dataclass
class Repo:
    """One repository; `gated` asks for a token that was granted access, `private` for one of its owner."""

    kind: str
    name: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, Blob], title: str, branch: str = "main") -> Commit:
        """Put `files` as the new state of `branch`."""
        parent = self.branches.get(branch, "")
        listed = "".join(f"{path}:{blob.git_oid}" for path, blob in sorted(files.items()))
        oid = hashlib.sha1(f"{self.kind}{self.name}{parent}{title}{listed}".encode()).hexdigest()
        self.commits.append(Commit(oid, title, dict(files)))
        self.branches[branch] = oid
        return self.commits[-1]

    def at(self, revision: str) -> Commit:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        for commit in self.commits:
            if commit.oid == oid:
                return commit
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def add(self, **contents: bytes | str) -> Commit:
        """Put files there without the client; `__` in a name stands for a dot, since names are keywords."""
        return self.add_files({name.replace("__", "."): content for name, content in contents.items()})

    def add_files(self, contents: dict[str, bytes | str]) -> Commit:
        files = dict(self.at("main").files)
        for path, content in contents.items():
            content = content.encode() if isinstance(content, str) else content
            files[path] = Blob(content, stored_as_lfs(path, len(content)))
        return self.commit(files, "Add files")


def stored_as_lfs(path: str, size: int) -> bool:
    return path.endswith(LFS_SUFFIXES) or size > LFS_SIZE


class Store:
    """All repositories, the large contents uploaded so far, and who may do what.

    `writer` may write everywhere, `reader` nowhere; a token of neither is unknown.
    """

    USERS = {"hf_writer": "writer", "hf_reader": "reader"}

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}

    def create(self, kind: str, name: str, private: bool = False, gated: bool = False) -> Repo:
        if (kind, name) in self.repos:
            raise Refused(409, "", "You already created this repo")
        repo = self.repos[kind, name] = Repo(kind, name, private, gated)
        repo.commit({}, "initial commit")
        return repo

    def visible(self, kind: str, name: str, token: str | None) -> Repo:
        """The repository, if whoever holds `token` may know of it."""
        if token is not None and token not in self.USERS:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        repo = self.repos.get((kind, name))
        if repo is None or (repo.private and self.USERS.get(token or "") != "writer"):
            raise Refused(401 if token is None else 404, "RepoNotFound", "Repository not found")
        return repo

    def readable(self, kind: str, name: str, token: str | None) -> Repo:
        """The repository, if whoever holds `token` may read its files."""
        repo = self.visible(kind, name, token)
        if repo.gated and self.USERS.get(token or "") not in repo.granted | {"writer"}:
            ask = f"Access to model {name} is restricted. Visit its page to ask for access."
            raise Refused(401 if token is None else 403, "GatedRepo", ask)
        return repo

    def writable(self, kind: str, name: str, token: str | None) -> Repo:
        self.check_writer(token)
        return self.visible(kind, name, token)

    def check_writer(self, token: str | None) -> None:
        if token is None or token not in self.USERS:
            raise Refused(401, "", "Invalid username or password.")
        if self.USERS[token] != "writer":
            raise Refused(403, "", "You don't have the rights to write here")
