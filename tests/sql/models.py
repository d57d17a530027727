"""A model of one test's own, as the gateway calls the registry for it."""

from dataclasses import dataclass
from typing import Any

from supabase import Client

from tests.sql import rows

PROVIDER: dict[str, Any] = {"provider": "together", "provider_model": "ton-tuned"}
ARTIFACT: dict[str, Any] = {
    "files": [{"path": "model.safetensors", "size": 7, "sha256": "a" * 64, "format": "safetensors", "metadata": {}}],
    "sha256": "b" * 64,
    "size_bytes": 7,
    "storage_path": "models/ton/v1",
}


@dataclass(frozen=True, slots=True)
class Family:
    """A model's name, and what is done with its versions."""

    service: Client
    name: str

    def call(self, function: str, **arguments: Any) -> dict[str, Any]:
        """What a function of the registry that goes by the model's name answers."""
        answered: dict[str, Any] = rows(self.service.rpc(function, {"model_name": self.name, **arguments}))
        return answered

    def of_id(self, function: str, id: int, **arguments: Any) -> dict[str, Any]:
        """What one that goes by a row's id answers."""
        answered: dict[str, Any] = rows(self.service.rpc(function, {"id": id, **arguments}))
        return answered

    def register(self, version: str | None = None, actor: str | None = None, **columns: Any) -> dict[str, Any]:
        return self.call("register_model", version=version, columns=columns, actor=actor)

    def ready(self, *versions: str) -> None:
        """Versions that a provider has, and that can be activated."""
        for version in versions:
            assert self.register(version, status="ready", **PROVIDER)["outcome"] == "registered"

    def active(self, *versions: str) -> None:
        """Versions that were active one after the other; the last one is."""
        self.ready(*versions)
        for version in versions:
            assert self.activate(version)["outcome"] == "activated"

    def activate(self, version: str, weight: float | None = None, **arguments: Any) -> dict[str, Any]:
        return self.call("activate_model", version=version, weight=weight, **arguments)

    def roll_back(self, **arguments: Any) -> dict[str, Any]:
        return self.call("roll_back_model", **arguments)

    def table(self) -> Any:
        return self.service.table("model_metadata")

    def row(self, version: str) -> dict[str, Any]:
        [row] = rows(self.table().select("*").eq("model_name", self.name).eq("version", version))
        found: dict[str, Any] = row
        return found

    def served(self) -> dict[str, float]:
        """The weight of each version that gateways are told to ask, by its version."""
        models = rows(self.service.rpc("gateway_state"))["models"]
        names = {model["name"]: model["weight"] for model in models}
        return {name.removeprefix(f"{self.name}@"): names[name] for name in names if name.startswith(f"{self.name}@")}

    def listed(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = rows(self.service.rpc("list_models", {"model_name": self.name}))
        return found

    def history(self, *columns: str) -> list[tuple[Any, ...]]:
        """What was done, the first first: the action and the version, and these columns."""
        query = self.service.table("model_history").select("*").eq("model_name", self.name).order("id")
        return [tuple(row[column] for column in ("action", "version", *columns)) for row in rows(query)]
