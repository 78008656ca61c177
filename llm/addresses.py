"""Addresses (https://…, s3://…, postgresql://…), and the credentials that they may contain.

Credentials are: user and password before the host; a user of http without a password, which is a
token; and values of a query or a fragment with names such as token, sig or X-Amz-Signature. Not
credentials: `?download=true`, and a user without a password elsewhere, as in
abfs://container@account and ssh://git@host.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote, unquote_plus

# Names in a query, reduced to letters and digits: their ends, and whole names.
SECRET_ENDS = (
    "token",
    "secret",
    "password",
    "passwd",
    "signature",
    "apikey",
    "accesskey",
    "secretkey",
    "credential",
)
SECRETS = {
    "sig",
    "key",
    "pwd",
    "pass",
    "auth",
    "authorization",
    "jwt",
    "accesskeyid",
    "awsaccesskeyid",
}
_SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]*://"
# In prose an address ends at white space or a quote. Addresses can be chained: simplecache::https://…
_IN_PROSE = re.compile(rf"""\b{_SCHEME}(?:(?!::{_SCHEME})[^\s"<>])*""")
_ALONE = re.compile(rf"\s*(?:[\w+.\-]+::)*{_SCHEME}")
_PAIR_IN_PROSE = re.compile(r"""([?&;#])([^\s?&;#="'<>/]+)=([^\s&;#"'<>)]*)""")
_PAIR_ALONE = re.compile(r"([?&;#])([^?&;#=/]+)=([^&;#]*)")


def without_credentials(text: str) -> str:
    """Return a text for messages, manifests and trackers: its addresses have no credentials."""
    return _without_pairs(
        _IN_PROSE.sub(lambda match: _without_user(match[0]), text), _PAIR_IN_PROSE
    )


def public(address: str) -> str:
    """Return an address without credentials; blanks and quotes are parts of it."""
    if not _ALONE.match(address):
        return address
    parts = re.split(rf"::(?={_SCHEME})", address)
    return "::".join(_without_pairs(_without_user(part), _PAIR_ALONE) for part in parts)


def all_public(value: Any) -> Any:
    """Return a value with all texts in lists and dictionaries free of credentials."""
    if isinstance(value, str):
        return without_credentials(public(value))
    if isinstance(value, dict):
        return {all_public(key): all_public(item) for key, item in value.items()}
    return [all_public(item) for item in value] if isinstance(value, list) else value


def refuse_credentials(value: Any, where: str, key: str = "") -> None:
    """Raise ValueError for credentials in params, which go to dvc.lock, git and MLflow.

    Args:
        value: a part of params.
        where: the file, for the message.
        key: the part's name, with dots.
    """
    if isinstance(value, str) and public(value) != value:
        raise ValueError(
            f"{where}: {key}: {without_credentials(public(value))} was given with a user, a password, a token or a "
            "signature. Params are written to dvc.lock, git and MLflow, so take it out. Put credentials into "
            "~/.netrc (https), or into the environment or the configuration of the protocol (AWS_…, AZURE_STORAGE_…, "
            "~/.config/fsspec); what only a signed address gives, download by hand and name the file. See docs/DATA.md."
        )
    if isinstance(value, dict):
        for name, item in value.items():
            refuse_credentials(str(name), where, key)
            refuse_credentials(item, where, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            refuse_credentials(item, where, f"{key}[{number}]")


def opened(address: str) -> tuple[Any, str]:
    """Return the fsspec file system of an address and the path in it.

    http uses ~/.netrc and the proxy's environment variables.
    """
    import fsspec

    settings = [fsspec.config.conf.setdefault(name, {}) for name in ("http", "https")]
    client = {"trust_env": True}  # unless fsspec's own configuration says otherwise
    for setting in settings:
        client |= setting.get("client_kwargs", {})
    settings[-1]["client_kwargs"] = client  # the last one counts
    opened_at: tuple[Any, str] = fsspec.core.url_to_fs(address)
    return opened_at


def _without_user(address: str) -> str:
    scheme, _, rest = address.partition("://")
    scheme += "://"
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    if not at:  # `host:8080`, `[::1]:8080`; else a password that holds one of / ? #
        user = "" if re.fullmatch(r"(\[[^\]]*\]|[^:\[]*)(:\d*)?", authority) else authority
    if ":" in unquote(user) and "@" in rest:
        return scheme + rest.rpartition("@")[2]  # a password may hold any sign, also @ and /
    return scheme + rest[len(user) + 1 :] if at and scheme in ("http://", "https://") else address


def _without_pairs(text: str, pairs: re.Pattern[str]) -> str:
    def without_secret(match: re.Match[str]) -> str:
        name = re.sub(r"[^a-z0-9]", "", unquote_plus(match[2]).lower())
        value = unquote_plus(match[3])
        if (
            name in SECRETS or name.endswith(SECRET_ENDS) or public(value) != value
        ):  # an address may contain another
            return match[1].strip("&;") + "\0"
        return match[0]

    # NUL marks what was cut out until the signs around it are corrected.
    return re.sub(
        r"[?#]\0+|\0", "", re.sub(r"([?#])\0+[&;]", r"\1", pairs.sub(without_secret, text))
    )
