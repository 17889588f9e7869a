"""The JSON Schema of params.yaml, for completion and checks in editors. `onward schema` prints it.

It is made from the classes that check the file (schema.py and the registry's policy), and adapted to what may be
written there: short forms, `default`, and keys that are inherited from `defaults`. It accepts every valid file.
`onward stage params` checks more, such as rules that involve several keys.
"""

from __future__ import annotations

import inspect
import re
from typing import Any, get_args

from pydantic import BaseModel

from onward.registry.gates import builtin
from onward.registry.gates.policy import Environment
from onward.stages.config import schema as sections
from onward.stages.config import techniques
from onward.stages.config.load import INHERITED, SECTIONS
from onward.stages.config.values import Section

DIALECT = "https://json-schema.org/draft/2020-12/schema"
STRING: dict[str, Any] = {"type": "string"}
# In a definition by name: short forms of its values that params.yaml may contain, too.
SHORT_FORMS: dict[str, list[dict[str, Any]]] = {
    "Dim": [{**STRING, "description": "An expression of other dimensions, such as `past + new`."}],
    "Weights": [{**STRING, "description": "A safetensors file, or a file of torch.save."}],
    "Signer": [{**STRING, "description": "The public key alone."}],
}


def schema() -> dict[str, Any]:
    """Make the JSON Schema."""
    whole = sections.Params.model_json_schema()
    policy = Environment.model_json_schema(ref_template="#/$defs/{model}")
    definitions = {**whole.pop("$defs"), **policy.pop("$defs", {}), "Environment": policy}
    for name, definition in definitions.items():
        _describe(definition, _class(name))
    _describe(whole, sections.Params)
    _adapt(whole, definitions)
    return {"$schema": DIALECT, **whole, "title": "params.yaml of Onward", "$defs": dict(sorted(definitions.items()))}


def _adapt(whole: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Allow what params.yaml may contain beyond the parsed values."""
    model = definitions["ModelParams"]
    del model["required"]  # each of them may be under `defaults`
    for name in SECTIONS:
        section = definitions[model["properties"][name]["$ref"].rsplit("/", 1)[-1]]
        section["properties"] = {key: _or_inherited(value) for key, value in section["properties"].items()}
    for name in (*SECTIONS, "seed"):
        model["properties"][name] = _or_inherited(model["properties"][name])
    for section in (definitions["Agreement"], definitions["Limits"]):
        section["properties"] = {key: _or_inherited(value) for key, value in section["properties"].items()}
    for tensor in ("Input", "Output"):
        axis = definitions[tensor]["properties"]["sample_axis"]
        axis["anyOf"] = [*axis["anyOf"], {"const": "none"}]
    weighted = {"type": "object", "additionalProperties": {"type": "number", "exclusiveMinimum": 0}, "maxProperties": 1}
    typical = definitions["Dim"]["properties"]["typical"]
    typical["items"] = {"anyOf": [typical["items"], weighted]}
    for stage in techniques.FOLDERS:
        definitions[stage.capitalize()]["properties"]["candidates"] = _or_inherited(_candidates(stage))
    del definitions["TechniqueSpec"]
    runtimes = whole["properties"]["runtimes"]
    runtimes["anyOf"] = [{"type": "array", "items": runtimes["items"], "minItems": 1}, runtimes["items"]]
    for key in ("type", "items", "minItems"):
        runtimes.pop(key, None)
    environments = {"type": "object", "additionalProperties": {"$ref": "#/$defs/Environment"}}
    whole_sections: dict[str, dict[str, Any]] = {
        "defaults": {"$ref": "#/$defs/ModelParams"},
        "environments": {"anyOf": [environments, {"type": "null"}]},
    }
    for key, form in whole_sections.items():
        whole["properties"][key] = {**form, "description": whole["properties"][key]["description"]}
    requirements = definitions["Environment"]["properties"]["require"]
    requirements["items"] = {"anyOf": [{"enum": list(builtin.REQUIREMENTS)}, {**STRING, "pattern": r"\.json$"}]}
    for name, forms in SHORT_FORMS.items():
        definitions[f"{name}Keys"] = definitions[name]
        definitions[name] = {"anyOf": [{"$ref": f"#/$defs/{name}Keys"}, *forms]}


def _or_inherited(value: dict[str, Any]) -> dict[str, Any]:
    """Also allow the value `default`."""
    about = {key: item for key, item in value.items() if key in ("description", "default")}
    rest = {key: item for key, item in value.items() if key not in ("description", "default", "title")}
    choices = rest["anyOf"] if set(rest) == {"anyOf"} else [rest]
    return {"anyOf": [*choices, {"const": INHERITED}], **about}


def _candidates(stage: str) -> dict[str, Any]:
    """The list of techniques to try: Onward's own with their options, and any other name, of a plug-in."""
    own = [name for name, module in techniques.modules(stage).items() if module.startswith("onward.")]
    with_options = {
        name: {
            "type": ["object", "null"],
            "properties": {
                option: {"enum": list(values)} if len(values) > 1 else {"default": values[0]}
                for option, values in techniques.allowed(stage, name).items()
            },
            "additionalProperties": False,
        }
        for name in own
    }
    choices: list[dict[str, Any]] = [
        {"enum": own},
        {**STRING, "description": "A technique of a plug-in."},
        {"type": "object", "properties": with_options, "minProperties": 1, "maxProperties": 1},
    ]
    return {"type": "array", "items": {"anyOf": choices}, "description": "The techniques to try."}


def _class(name: str) -> type[BaseModel] | None:
    """The class of a definition."""
    pending: list[type[BaseModel]] = [Section, Environment]
    while pending:
        found = pending.pop()
        if found.__name__ == name:
            return found
        pending += found.__subclasses__()
        pending += [item for field in found.model_fields.values() for item in _classes(field.annotation)]
    return None


def _classes(annotation: Any) -> list[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _classes(argument)]


def _describe(definition: dict[str, Any], described: type[BaseModel] | None) -> None:
    """Take descriptions from the docstring of the class: its summary, and the section `Attributes` for the keys."""
    definition.pop("description", None)
    if described is None or not (text := inspect.getdoc(described)):
        return
    definition["description"] = text.split("\n", 1)[0]
    _, _, attributes = text.partition("Attributes:\n")
    for name, about in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, re.M):
        name = {"source": "from"}.get(name, name)
        if name in definition.get("properties", {}):
            without_files = re.sub(r" \((registry|stages)/\S+\)", "", " ".join(about.split()))
            definition["properties"][name]["description"] = without_files
    for value in definition.get("properties", {}).values():
        value.pop("title", None)
