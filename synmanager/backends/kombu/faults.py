"""What kombu and its client libraries raise, as this project's errors."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator

from synmanager.errors import AccessRefused, BrokerUnavailable, ConfigurationError, SynmanagerError

__all__ = ["translate"]

#: Of AMQP: a login, a right, a virtual host.
_REFUSALS = (403, 530)

#: How Redis begins an answer about a login or a right; redis-py takes some off.
_REDIS_REFUSALS = ("NOAUTH", "WRONGPASS", "NOPERM")

_REFUSING_CLASSES = ("AuthenticationError", "NoPermissionError", "AuthorizationError")

#: Of PostgreSQL: a right.
_SQL_REFUSALS = ("28000", "28P01", "42501")

#: What it says before it has codes for it, in English.
_SQL_REFUSING_WORDS = re.compile(
    "authentication failed|no password supplied|pg_hba.conf|(role|database) .* does not exist"
    "|is not permitted to log in|permission denied|does not support SSL|certificate verify failed"
    "|server certificate for|valid client certificate"
)

#: Of Amazon's services.
_AWS_REFUSALS = (
    "AccessDenied",
    "AccessDeniedException",
    "AuthFailure",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
)


def translate(error: Exception, where: str) -> SynmanagerError:
    """Return our error for one that came out of kombu.

    Args:
        where: the broker, without a login.
    """
    if isinstance(error, ImportError):
        return ConfigurationError(f"{where} cannot be used: {error}")
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return AccessRefused(
                f"no trust between us and {where}: its certificate is not valid here: "
                f"{cause.verify_message}"
            )
        if _is_refusal(cause):
            return AccessRefused(f"{where} does not let us in: {cause}")
    kind = type(error).__name__
    return BrokerUnavailable(f"no connection to {where}: {kind}: {error}")


def _is_refusal(error: BaseException) -> bool:
    if getattr(error, "reply_code", None) in _REFUSALS:
        return True
    answer = getattr(error, "response", None)
    if isinstance(answer, dict) and answer.get("Error", {}).get("Code") in _AWS_REFUSALS:
        return True
    if type(error).__name__ in _REFUSING_CLASSES and type(error).__module__.startswith("redis"):
        return True
    if type(error).__module__.startswith("psycopg"):
        code = getattr(error, "sqlstate", None)
        return code in _SQL_REFUSALS if code else bool(_SQL_REFUSING_WORDS.search(str(error)))
    return str(error).startswith(_REDIS_REFUSALS)


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__
