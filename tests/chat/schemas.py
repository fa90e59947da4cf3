"""Schemas of the kinds that the public JSON Schema Test Suite has, which can be enforced."""

from __future__ import annotations

from typing import Any


def obj(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **more}


def closed(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An object with these properties alone, all of them there."""
    return obj(properties, required=list(properties), additionalProperties=False, **more)


INTEGER: dict[str, Any] = {"type": "integer"}
STRING: dict[str, Any] = {"type": "string"}
SHORT: dict[str, Any] = {"type": "string", "maxLength": 4}
CAT = closed({"kind": {"const": "cat"}, "lives": {"type": "integer", "minimum": 1, "maximum": 9}})
DOG = closed({"kind": {"const": "dog"}, "name": SHORT})
NODE = closed({"value": INTEGER, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}})
TREE = {
    "$ref": "#/$defs/tree",
    "$defs": {
        "tree": closed(
            {"name": SHORT, "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}
        )
    },
}

SCHEMAS: dict[str, dict[str, Any] | bool] = {
    # type
    "any": {},
    "true": True,
    "null": {"type": "null"},
    "boolean": {"type": "boolean"},
    "integer": INTEGER,
    "number": {"type": "number"},
    "string": STRING,
    "array": {"type": "array"},
    "object": {"type": "object"},
    "integer or string": {"type": ["integer", "string"]},
    "array, object or null": {"type": ["array", "object", "null"]},
    # enum and const
    "enum of strings": {"enum": ["red", "amber", "green"]},
    "enum of several types": {"enum": [6, "foo", [], True, {"foo": 12}, None]},
    "enum with an escaped character": {"enum": ["foo\nbar", "foo\rbar", 'a"b', "a\\b"]},
    "enum of false is not zero": {"enum": [False]},
    "enum of zero": {"enum": [0]},
    "enum in a type": {"type": "integer", "enum": [1, 2, "three"]},
    "enum of prefixes": {"enum": ["a", "ab", "abc", ""]},
    "const string": {"const": "two words"},
    "const number": {"const": 2},
    "const fraction": {"const": 1.5},
    "const object": {"const": {"foo": "bar", "baz": ["bax", 1]}},
    "const array": {"const": [{"foo": "bar"}]},
    "const of forty digits": {"const": 10**40},
    "const null": {"const": None},
    "const false": {"const": False},
    "const with umlauts": {"const": "Zürich, 東京 🗼"},
    # numbers
    "minimum": {"type": "integer", "minimum": -3},
    "maximum": {"type": "integer", "maximum": 300},
    "range": {"type": "integer", "minimum": 10, "maximum": 1999},
    "negative range": {"type": "integer", "minimum": -250, "maximum": -7},
    "one number": {"type": "integer", "minimum": 7, "maximum": 7},
    "exclusive range": {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3},
    "fractions": {"type": "number", "minimum": 0, "maximum": 1},
    "exclusive fractions": {"type": "number", "exclusiveMinimum": -1.5, "exclusiveMaximum": 2.25},
    "small fractions": {"type": "number", "minimum": 0.001, "maximum": 0.0011},
    "above a fraction": {"type": "number", "exclusiveMinimum": 99.5},
    "integer within fractions": {"type": "integer", "minimum": 1.1, "maximum": 4.9},
    "multiple of seven": {"type": "integer", "multipleOf": 7},
    "multiple within a range": {
        "type": "integer", "multipleOf": 5, "minimum": 12, "maximum": 104,
    },
    "multiple of five halves": {"type": "number", "multipleOf": 2.5},
    "multiple of a half": {"type": "number", "multipleOf": 0.5},
    "large bounds": {"type": "integer", "minimum": 0, "maximum": 18446744073709551615},
    "bounds in a format": {"type": "integer", "format": "uint8"},
    # strings
    "minLength": {"type": "string", "minLength": 3},
    "maxLength": {"type": "string", "maxLength": 5},
    "length": {"type": "string", "minLength": 2, "maxLength": 2},
    "empty string": {"type": "string", "maxLength": 0},
    "pattern": {"type": "string", "pattern": "^[a-z]{2,4}-[0-9]+$"},
    "pattern inside": {"type": "string", "pattern": "a+b"},
    "pattern at the end": {"type": "string", "pattern": "xyz$", "maxLength": 9},
    "pattern of alternatives": {"type": "string", "pattern": "^(foo|ba[rz])*$"},
    "pattern with digits": {"type": "string", "pattern": "^\\d{3}\\s\\w+$"},
    "pattern of words": {"type": "string", "pattern": "^\\w{1,3}\\W\\S\\D$"},
    "pattern of what is no word": {"type": "string", "pattern": "^[^\\w\\s]{1,4}$"},
    "pattern of names": {"type": "object", "patternProperties": {"^\\w{1,4}$": INTEGER},
                         "additionalProperties": False},
    "pattern of brackets": {"type": "string", "pattern": "^[ab[]{1,3}]$"},
    "pattern with a length": {"type": "string", "pattern": "^[ab]*$", "minLength": 5,
                              "maxLength": 8},
    "pattern with quotes": {"type": "string", "pattern": '^"[^"\\\\]*"$'},
    "pattern of letters of Greek": {"type": "string", "pattern": "^[\u03b1-\u03c9]{1,5}$"},
    "pattern with an emoji": {"type": "string", "pattern": "^🐲*$", "maxLength": 6},
    # formats
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time"},
    "date-time": {"type": "string", "format": "date-time"},
    "duration": {"type": "string", "format": "duration"},
    "email": {"type": "string", "format": "email", "maxLength": 40},
    "hostname": {"type": "string", "format": "hostname", "maxLength": 40},
    "ipv4": {"type": "string", "format": "ipv4"},
    "ipv6": {"type": "string", "format": "ipv6"},
    "uuid": {"type": "string", "format": "uuid"},
    "uri": {"type": "string", "format": "uri"},
    # arrays
    "items": {"type": "array", "items": INTEGER},
    "minItems and maxItems": {"type": "array", "items": SHORT, "minItems": 2, "maxItems": 3},
    "no items": {"type": "array", "maxItems": 0},
    "items that are impossible": {"type": "array", "items": False},
    "prefixItems": {"type": "array", "prefixItems": [INTEGER, SHORT]},
    "prefixItems and others": {
        "type": "array", "prefixItems": [INTEGER, SHORT], "items": {"type": "boolean"},
    },
    "tuple": {"type": "array", "prefixItems": [INTEGER, SHORT], "items": False, "minItems": 2},
    "tuple of draft 7": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array", "items": [INTEGER, SHORT], "additionalItems": False, "minItems": 2,
    },
    "nested arrays": {
        "type": "array", "maxItems": 3,
        "items": {"type": "array", "maxItems": 3, "items": {"type": "array", "items": INTEGER,
                                                            "maxItems": 2}},
    },
    "unevaluatedItems": {
        "type": "array", "prefixItems": [INTEGER], "unevaluatedItems": False,
    },
    # objects
    "properties": obj({"foo": INTEGER, "bar": STRING}),
    "required": obj({"foo": INTEGER, "bar": STRING}, required=["foo"]),
    "closed": closed({"foo": INTEGER, "bar": SHORT}),
    "closed and optional": obj({"foo": INTEGER, "bar": SHORT, "baz": {"type": "null"}},
                               additionalProperties=False),
    "optional between required": obj(
        {"a": INTEGER, "b": INTEGER, "c": INTEGER}, required=["c", "a"],
        additionalProperties=False,
    ),
    "required without properties": {"type": "object", "required": ["foo"],
                                    "additionalProperties": INTEGER},
    "additionalProperties": obj({"foo": INTEGER}, additionalProperties={"type": "boolean"}),
    "map": {"type": "object", "additionalProperties": INTEGER, "maxProperties": 3},
    "map that is not empty": {"type": "object", "additionalProperties": INTEGER,
                              "minProperties": 1},
    "patternProperties": {"type": "object", "patternProperties": {"^n_[a-z]+$": INTEGER},
                          "additionalProperties": False},
    "two patternProperties": {
        "type": "object", "additionalProperties": False,
        "patternProperties": {"^n_[a-z]{1,3}$": INTEGER, "^s_[a-z]{1,3}$": SHORT},
    },
    "patternProperties and others": obj(
        {"id": INTEGER}, patternProperties={"^x-": SHORT}, additionalProperties=False,
        required=["id"],
    ),
    "propertyNames of a pattern": {"type": "object", "propertyNames": {"pattern": "^[A-Z]{2}$"},
                                   "additionalProperties": INTEGER},
    "propertyNames of an enum": {"type": "object", "propertyNames": {"enum": ["on", "off"]},
                                 "additionalProperties": {"type": "boolean"}},
    "names with quotes and umlauts": closed({'a"b': INTEGER, "größe\n": INTEGER, "": INTEGER,
                                             "東": INTEGER, "a\\b": INTEGER}),
    "names of JavaScript": closed({"__proto__": INTEGER, "constructor": INTEGER}),
    "dependentRequired": obj(
        {"card": INTEGER, "address": SHORT}, dependentRequired={"card": ["address"]},
        additionalProperties=False,
    ),
    "dependentRequired of several": obj(
        {"a": INTEGER, "b": INTEGER, "c": INTEGER}, additionalProperties=False,
        dependentRequired={"a": ["b", "c"], "b": ["c"]},
    ),
    "dependentSchemas": obj(
        {"a": INTEGER, "b": {}}, additionalProperties=False,
        dependentSchemas={"a": {"properties": {"b": {"type": "null"}}, "required": ["b"]}},
    ),
    "dependencies of draft 7": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **obj({"a": INTEGER, "b": INTEGER}, dependencies={"a": ["b"]},
              additionalProperties=False),
    },
    "unevaluatedProperties": obj({"a": INTEGER}, unevaluatedProperties=False),
    "nested objects": closed({"a": closed({"b": closed({"c": closed({"d": INTEGER})})})}),
    # combinations
    "allOf": {"allOf": [obj({"bar": INTEGER}, required=["bar"]),
                        obj({"foo": SHORT}, required=["foo"])]},
    "allOf with a base": {
        "type": "object", "properties": {"bar": INTEGER}, "required": ["bar"],
        "allOf": [{"properties": {"foo": SHORT}, "required": ["foo"]},
                  {"properties": {"baz": {"type": "null"}}, "required": ["baz"]}],
    },
    "allOf of ranges": {"type": "integer", "allOf": [{"maximum": 30}, {"minimum": 20}]},
    "allOf of patterns": {"type": "string", "allOf": [{"pattern": "^a"}, {"pattern": "z$"}]},
    "allOf of multiples": {"type": "integer", "allOf": [{"multipleOf": 4}, {"multipleOf": 6}]},
    "anyOf": {"anyOf": [INTEGER, {"type": "string", "minLength": 2}]},
    "anyOf of overlapping": {"anyOf": [{"type": "integer", "minimum": 5},
                                       {"type": "integer", "maximum": 9}]},
    "anyOf with a base": {"type": "string", "anyOf": [{"maxLength": 2}, {"minLength": 4}]},
    "anyOf of objects": {"anyOf": [closed({"foo": INTEGER}), closed({"bar": SHORT})]},
    "oneOf of types": {"oneOf": [INTEGER, STRING, {"type": "null"}]},
    "oneOf of ranges": {"oneOf": [{"type": "integer", "maximum": 3},
                                  {"type": "integer", "minimum": 10}]},
    "oneOf in a type": {"type": "object", "required": ["k"], "oneOf": [
        {"properties": {"k": {"const": "a"}, "n": INTEGER}}, {"properties": {"k": {"const": "b"}}},
    ]},
    "oneOf of three hundred": {"oneOf": [
        closed({"k": {"const": f"v{number}"}, "n": INTEGER}) for number in range(300)]},
    "oneOf told apart": {"oneOf": [CAT, DOG]},
    "oneOf of references": {"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
                            "$defs": {"cat": CAT, "dog": DOG}},
    "oneOf with a discriminator": closed({
        "pet": {
            "discriminator": {"propertyName": "kind",
                              "mapping": {"cat": "#/$defs/cat", "dog": "#/$defs/dog"}},
            "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
        },
    }, **{"$defs": {"cat": {**CAT, "required": ["lives"]}, "dog": DOG}}),
    "oneOf of consts": {"oneOf": [{"const": "a", "title": "A"}, {"const": "b", "title": "B"}]},
    # references
    "$ref into $defs": {"type": "array", "items": {"$ref": "#/$defs/a"}, "maxItems": 3,
                        "$defs": {"a": {"type": "integer", "minimum": 0, "maximum": 5}}},
    "$ref into properties": obj({"a": INTEGER, "b": {"$ref": "#/properties/a"}},
                                required=["b"], additionalProperties=False),
    "$ref with escapes": obj(
        {"tilde": {"$ref": "#/$defs/tilde~0field"}, "slash": {"$ref": "#/$defs/slash~1field"},
         "percent": {"$ref": "#/$defs/percent%25field"}},
        additionalProperties=False,
        **{"$defs": {"tilde~field": INTEGER, "slash/field": SHORT, "percent%field": INTEGER}},
    ),
    "$ref to an anchor": {"$ref": "#here", "$defs": {"a": {"$anchor": "here", **INTEGER}}},
    "$ref to its own $id": {"$id": "http://example.com/s.json", "type": "array", "maxItems": 2,
                            "items": {"$ref": "http://example.com/s.json#/$defs/a"},
                            "$defs": {"a": INTEGER}},
    "$ref with a sibling": {"$ref": "#/$defs/a", "maximum": 9,
                            "$defs": {"a": {"type": "integer", "minimum": 3}}},
    "$ref to a $ref": {"$ref": "#/$defs/c", "$defs": {
        "a": INTEGER, "b": {"$ref": "#/$defs/a"}, "c": {"$ref": "#/$defs/b"}}},
    "definitions": {"type": "array", "items": {"$ref": "#/definitions/a"}, "maxItems": 2,
                    "definitions": {"a": SHORT}},
    "a list that refers to itself": NODE,
    "a tree": TREE,
    "allOf doubled sixteen times": {"$ref": "#/$defs/d16", "$defs": {"d0": INTEGER, **{
        f"d{n + 1}": {"allOf": [{"$ref": f"#/$defs/d{n}"}] * 2} for n in range(16)}}},
    "two that refer to each other": {
        "$ref": "#/$defs/even",
        "$defs": {
            "even": obj({"odd": {"$ref": "#/$defs/odd"}}, additionalProperties=False),
            "odd": obj({"even": {"$ref": "#/$defs/even"}}, additionalProperties=False,
                       required=["even"]),
        },
    },
    # what people ask for
    "a person": closed({
        "name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0,
                                                             "maximum": 150},
        "email": {"anyOf": [{"type": "string", "format": "email", "maxLength": 24},
                            {"type": "null"}]},
        "tags": {"type": "array", "items": SHORT, "maxItems": 3},
    }),
    "an annotated schema": {
        "title": "T", "description": "D", "default": 3, "examples": [1], "deprecated": True,
        "$comment": "c", "readOnly": True, "x-order": 1, **INTEGER,
    },
}  # fmt: skip
"""By what they are about."""
