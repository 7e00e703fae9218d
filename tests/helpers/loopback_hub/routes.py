"""Answers of the loopback Hub to each request of the client."""

import base64
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml

from .store import Blob, Refused, Repo, Store, stored_as_lfs

REPO = r"/api/(?P<kind>model|dataset|space)s/(?P<name>[^/]+/[^/]+?)"
GIT = r"/(?:(?P<kind>dataset|space)s/)?(?P<name>[^/]+/[^/]+?)\.git"
PATH_OR_URL = re.compile(r"^[~./]|[/\\].*[/\\]|\s|://")


class Routes:
    """JSON in, JSON out; files go their own way in `server`. Every method gets the token and the request's body."""

    def __init__(self, store: Store, url: str):
        self.store, self.url = store, url
        self.table: list[tuple[str, re.Pattern, Callable]] = [
            (method, re.compile(f"^{pattern}$"), function)
            for method, pattern, function in (
                ("GET", r"/api/whoami-v2", self.whoami),
                ("POST", r"/api/validate-yaml", self.validate_yaml),
                ("POST", r"/api/repos/create", self.create),
                ("POST", rf"{GIT}/info/lfs/objects/batch", self.batch),
                ("POST", rf"{REPO}/preupload/(?P<revision>.+)", self.preupload),
                ("POST", rf"{REPO}/commit/(?P<revision>.+)", self.commit),
                ("POST", rf"{REPO}/paths-info/(?P<revision>.+)", self.paths_info),
                ("POST", rf"{REPO}/branch/(?P<branch>.+)", self.branch),
                ("POST", rf"{REPO}/tag/(?P<revision>.+)", self.tag),
                ("DELETE", rf"{REPO}/tag/(?P<tag>.+)", self.delete_tag),
                ("GET", rf"{REPO}/refs", self.refs),
                ("GET", rf"{REPO}/commits/(?P<revision>.+)", self.commits),
                ("GET", rf"{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", self.tree),
                ("GET", rf"{REPO}/revision/(?P<revision>.+)", self.info),
                ("GET", REPO, self.info),
            )
        ]

    def answer(self, method: str, path: str, query: str, token: str | None, body: bytes) -> Any:
        """The JSON answer, or `Refused`; paths arrive as they were sent, so that `%2F` stays within a part."""
        for wanted, pattern, function in self.table:
            found = pattern.match(path)
            if wanted == method and found:
                parts = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                with self.store.lock:
                    return function(token=token, body=body, query=parse_qs(query), **parts)
        raise Refused(404, "", f"the loopback Hub does not know {method} {path}")

    def whoami(self, token: str | None, **_: Any) -> dict:
        if token not in self.store.USERS:
            raise Refused(401, "", "Invalid username or password.")
        return {"type": "user", "name": self.store.USERS[token], "orgs": [], "auth": {"accessToken": {}}}

    def create(self, token: str | None, body: bytes, **_: Any) -> dict:
        asked = json.loads(body)
        self.store.check_writer(token)
        kind = asked.get("type") or "model"
        name = f"{asked.get('organization') or self.store.USERS[token]}/{asked['name']}"
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        prefix = "" if kind == "model" else f"{kind}s/"
        answer = {"url": f"{self.url}/{prefix}{name}", "name": name}
        if (kind, name) in self.store.repos:
            raise Refused(409, "", json.dumps(answer))
        self.store.create(kind, name, private)
        return answer

    def validate_yaml(self, body: bytes, **_: Any) -> dict:
        """The Hub's complaints that a model card meets most: a licence or a base that is no id."""
        content = json.loads(body)["content"]
        block = re.match(r"^---\s*\n(.*?)\n---", content, re.S)
        data = yaml.safe_load(block[1]) if block else {}
        errors = []
        for name in ("license", "pipeline_tag"):
            if name in data and not isinstance(data[name], str):
                errors.append(f'"{name}" must be a string')
        bases = data.get("base_model") or []
        for base in [bases] if isinstance(bases, str) else bases:
            if PATH_OR_URL.search(base):
                errors.append(f'"base_model" with value "{base}" is not valid. Use a model id from the Hub.')
        if errors:
            raise Refused(400, "", json.dumps({"errors": [{"message": error} for error in errors], "warnings": []}))
        return {"errors": [], "warnings": []}

    def preupload(self, token: str | None, kind: str, name: str, revision: str, body: bytes, **_: Any) -> dict:
        files = self.store.writable(kind, name, token).at(revision).files
        modes = []
        for file in json.loads(body)["files"]:
            mode = "lfs" if stored_as_lfs(file["path"], file["size"]) else "regular"
            held = files.get(file["path"])
            modes.append(
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": held.etag if held else None}
            )
        return {"files": modes}

    def batch(self, token: str | None, name: str, body: bytes, kind: str = "model", **_: Any) -> dict:
        self.store.writable(kind, name, token)
        objects = []
        for item in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.url}/_lfs/{item['oid']}", "header": {}}}
            objects.append(item if item["oid"] in self.store.large else item | {"actions": upload})
        return {"transfer": "basic", "objects": objects}

    def commit(self, token: str | None, kind: str, name: str, revision: str, body: bytes, **_: Any) -> dict:
        repo = self.store.writable(kind, name, token)
        files, title = dict(repo.at(revision).files), ""
        for line in body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                title = value["summary"]
            elif key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), is_lfs=False)
            elif key == "lfsFile":
                if value["oid"] not in self.store.large:
                    raise Refused(400, "", f"{value['path']} was never uploaded")
                files[value["path"]] = Blob(self.store.large[value["oid"]], is_lfs=True)
            elif key == "deletedFile":
                files.pop(value["path"], None)
            elif key == "deletedFolder":
                files = {path: blob for path, blob in files.items() if not path.startswith(value["path"])}
        made = repo.commit(files, title, revision)
        prefix = "" if kind == "model" else f"{kind}s/"
        return {"commitUrl": f"{self.url}/{prefix}{name}/commit/{made.oid}", "commitOid": made.oid, "success": True}

    def branch(self, token: str | None, kind: str, name: str, branch: str, body: bytes, **_: Any) -> dict:
        repo = self.store.writable(kind, name, token)
        if branch in repo.branches:
            raise Refused(409, "", "Reference already exists")
        repo.branches[branch] = repo.at(json.loads(body or b"{}").get("startingPoint", "main")).oid
        return {}

    def tag(self, token: str | None, kind: str, name: str, revision: str, body: bytes, **_: Any) -> dict:
        repo, tag = self.store.writable(kind, name, token), json.loads(body)["tag"]
        if tag in repo.tags:
            raise Refused(409, "", "Tag already exists")
        repo.tags[tag] = repo.at(revision).oid
        return {}

    def delete_tag(self, token: str | None, kind: str, name: str, tag: str, **_: Any) -> dict:
        if self.store.writable(kind, name, token).tags.pop(tag, None) is None:
            raise Refused(404, "RevisionNotFound", "no such tag")
        return {}

    def refs(self, token: str | None, kind: str, name: str, **_: Any) -> dict:
        repo = self.store.visible(kind, name, token)

        def listed(refs: dict[str, str], place: str) -> list[dict]:
            return [{"name": ref, "ref": f"refs/{place}/{ref}", "targetCommit": oid} for ref, oid in refs.items()]

        return {"branches": listed(repo.branches, "heads"), "tags": listed(repo.tags, "tags"), "converts": []}

    def commits(self, token: str | None, kind: str, name: str, revision: str, **_: Any) -> list[dict]:
        repo = self.store.visible(kind, name, token)
        day = "2026-01-01T00:00:00.000Z"
        return [
            {"id": commit.oid, "title": commit.title, "message": "", "date": day, "authors": []}
            for commit in reversed(repo.commits)
        ]

    def tree(
        self, token: str | None, kind: str, name: str, revision: str, query: dict, folder: str = "", **_: Any
    ) -> list[dict]:
        files = self.store.visible(kind, name, token).at(revision).files
        prefix = f"{folder}/" if folder else ""
        inside = {path: blob for path, blob in files.items() if path.startswith(prefix)}
        if folder and not inside:
            raise Refused(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        direct = {path for path in inside if "/" not in path.removeprefix(prefix)}
        parents = {
            prefix + "/".join(path.removeprefix(prefix).split("/")[:depth])
            for path in inside
            for depth in range(1, path.removeprefix(prefix).count("/") + 1)
        }
        if not recursive:
            parents = {path for path in parents if "/" not in path.removeprefix(prefix)}
        folders = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(parents)]
        shown = sorted(inside) if recursive else sorted(direct)
        return folders + [inside[path].described(path) for path in shown]

    def paths_info(self, token: str | None, kind: str, name: str, revision: str, body: bytes, **_: Any) -> list[dict]:
        files = self.store.visible(kind, name, token).at(revision).files
        text = body.decode()
        paths = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
        found = [files[path].described(path) for path in paths if path in files]
        folders = [path for path in paths if path not in files and any(f.startswith(f"{path}/") for f in files)]
        return found + [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders]

    def info(
        self, token: str | None, kind: str, name: str, query: dict, revision: str = "main", **_: Any
    ) -> dict[str, Any]:
        repo: Repo = self.store.visible(kind, name, token)
        commit = repo.at(revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        if query.get("blobs"):
            for sibling in siblings:
                blob = commit.files[sibling["rfilename"]]
                sibling |= {"size": len(blob.content), "blobId": blob.git_oid}
                if blob.is_lfs:
                    sibling["lfs"] = {"sha256": blob.sha256, "size": len(blob.content), "pointerSize": 134}
        day = "2026-01-01T00:00:00.000Z"
        return {
            "_id": "0", "id": name, "modelId": name, "author": name.split("/")[0], "sha": commit.oid, "tags": [],
            "private": repo.private, "gated": "manual" if repo.gated else False, "disabled": False, "downloads": 0,
            "likes": 0, "lastModified": day, "createdAt": day, "siblings": siblings,
        }  # fmt: skip
