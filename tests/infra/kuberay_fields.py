"""What KubeRay's schemas say of the fields that our manifests use, as kuberay-fields.json.

    python tests/infra/kuberay_fields.py SCHEMA_FOLDER

The folder holds the JSON schemas of KubeRay's v1 resources as kuberay-raycluster-v1.json,
kuberay-rayjob-v1.json and kuberay-rayservice-v1.json: the openAPIV3Schema of its custom resource
definitions, https://github.com/ray-project/kuberay, ray-operator/config/crd/bases. They are too
large to keep for the few fields in use: what is kept knows these, and refuses all others.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "parts"))

from kubernetes_manifests import OVERLAYS, RAY_KINDS, installed

Schema = dict[str, Any]

FIELDS = Path(__file__).with_name("kuberay-fields.json")
_SOURCE = (
    "pruned from the JSON schemas of KubeRay's v1 resources, https://github.com/ray-project/kuberay"
)
_LICENCE = "Apache-2.0, as KubeRay's"
_OF_VALUES = ("type", "enum", "pattern", "format", "anyOf", "minimum", "maximum", "maxLength")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with kuberay-raycluster-v1.json and the others")
    folder = parser.parse_args().folder
    pruning = Pruning()
    schemas = {}
    for kind in RAY_KINDS:
        schema = json.loads((folder / f"kuberay-{kind.lower()}-v1.json").read_text())
        used = [m for overlay in OVERLAYS for m in installed(overlay) if m["kind"] == kind]
        schemas[kind] = pruning.pruned(schema, used, kind)
    pods = {"podTemplate": pruning.pod_template()}
    kept = {"source": _SOURCE, "licence": _LICENCE, "$defs": pods, "schemas": schemas}
    FIELDS.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"wrote {FIELDS}: {FIELDS.stat().st_size / 1000:.0f} kB")


class Pruning:
    """Prunes schemas, and puts what they say of pods in one place."""

    def __init__(self) -> None:
        self._template: Schema = {}
        self._templates: list[Any] = []

    def pod_template(self) -> Schema:
        """Of the pods of all that was pruned."""
        return self.pruned(self._template, self._templates, "pod")

    def pruned(self, schema: Schema, values: Sequence[Any], path: str) -> Schema:
        """The schema, of those fields only that any of the values has.

        Exits for a field that the schema does not know.
        """
        if path.endswith(".template"):
            self._template = schema
            self._templates += values
            return {"$ref": "#/$defs/podTemplate"}
        kept = {key: schema[key] for key in _OF_VALUES if key in schema}
        if isinstance(schema.get("items"), dict):
            items = [item for value in values for item in value]
            kept["items"] = self.pruned(schema["items"], items, f"{path}[]")
        of_all = schema.get("additionalProperties")
        if isinstance(of_all, dict):  # a map with keys of the user's
            inner = [item for value in values for item in value.values()]
            kept["additionalProperties"] = self.pruned(of_all, inner, f"{path}.*")
        if properties := schema.get("properties"):
            required = schema.get("required", [])
            used = sorted({*required, *(key for value in values for key in value)})
            kept |= {"required": required} if required else {}
            kept |= {"additionalProperties": False, "properties": {}}
            for key in used:
                if key not in properties:
                    sys.exit(f"{path}.{key} is no field of KubeRay's: {', '.join(properties)} are")
                inner = [value[key] for value in values if key in value]
                field = self.pruned(properties[key], inner, f"{path}.{key}")
                kept["properties"][key] = field
        return kept


if __name__ == "__main__":
    main()
