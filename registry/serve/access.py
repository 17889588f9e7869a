"""What HTTP and gRPC have in common: the check of tokens, the look-up of models, and the time limit of an answer."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping

from onward.registry.serve.engine import Answer
from onward.registry.serve.limits import Limits
from onward.registry.serve.protocol import Fault, Request
from onward.registry.serve.served import ServedModel
from onward.registry.serve.versions import version_of


class Access:
    """Lets requests through to the models.

    Args:
        models: the served models by their names.
        limits: what one request may cost.
        tokens: the bearer tokens that are accepted; empty if none is needed.
    """

    def __init__(self, models: Mapping[str, ServedModel], limits: Limits, tokens: frozenset[str]) -> None:
        self.models, self.limits, self._tokens = models, limits, tokens

    @property
    def ready(self) -> bool:
        """Whether all models are ready."""
        return all(model.ready for model in self.models.values())

    def check_token(self, authorization: str, where: str) -> None:
        """Check the bearer token of a request, if tokens are needed.

        Args:
            authorization: the value that the caller sent.
            where: the name of that value in the protocol, for the message.

        Raises:
            Fault: the token is missing or wrong.
        """
        if not self._tokens:
            return
        kind, _, given = authorization.partition(" ")
        matches = [hmac.compare_digest(given.encode(), token.encode()) for token in self._tokens]
        if kind.lower() != "bearer" or not any(matches):
            raise Fault(401, f"a bearer token is needed: {where}: Bearer TOKEN")

    def model(self, name: str, wanted: str = "") -> ServedModel:
        """Find a model.

        Args:
            name: its name.
            wanted: the only version that will do; "" for any.

        Raises:
            Fault: there is no such model, or another version is loaded.
        """
        found = self.models.get(name)
        if found is None:
            raise Fault(404, f"there is no model {name!r}; this server has {', '.join(self.models)}")
        loaded = version_of(found.session.loaded)
        if wanted and wanted != loaded:
            raise Fault(404, f"{name} has version {loaded} loaded, not {wanted}")
        return found

    def ready_model(self, name: str) -> ServedModel:
        """Find a model that can answer.

        Args:
            name: its name.

        Raises:
            Fault: there is no such model, or it is not ready.
        """
        found = self.model(name)
        if not found.ready:
            raise Fault(503, f"{name} is not ready yet")
        return found

    def at_once(self, model: ServedModel, asked: Request, wanted: str, number: str = "") -> Answer | None:
        """Compute the outputs of a request in this thread, if its run is short; None otherwise.

        Args:
            model: as in `answer`.
            asked: as in `answer`.
            wanted: as in `answer`.
            number: as in `answer`.

        Raises:
            Fault: as ServedModel.infer.
        """
        seconds = self._seconds(asked)
        return model.at_once(asked.arrays, wanted, number or asked.id, seconds)

    async def answer(self, model: ServedModel, asked: Request, wanted: str, number: str = "") -> Answer:
        """Compute the outputs of a request within the time limit.

        Args:
            model: the model.
            asked: the request.
            wanted: the only version that may answer; "" for any.
            number: the request's identifier, for observers.

        Raises:
            Fault: as ServedModel.infer, or the time is over.
        """
        seconds = self._seconds(asked)
        try:
            return await asyncio.wait_for(model.infer(asked.arrays, wanted, number or asked.id, seconds), seconds)
        except TimeoutError:
            raise Fault(504, f"{model.name} did not answer within {seconds:g} s") from None

    def _seconds(self, asked: Request) -> float:
        """The time limit of a request."""
        return min(self.limits.seconds, asked.seconds or self.limits.seconds)
