"""Dataclasses as command lines: every field is a plain option with its own line of documentation.

An optional part (``perturbation: PerturbationConfig | None = None``) is switched on by giving any of its options; where several
dataclasses can stand in a place, told apart by a constant field, that field's option says which:

    --ranking.perturbation.loss lspr            --ranking.balancing.method multibalance --ranking.balancing.rescale
"""

import ast
import inspect
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, partial
from importlib import import_module
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from rayrec.errors import UserError
from rayrec.typed_json import ConfigError

T = TypeVar("T")
_RULES = ConstructorRegistry()
_ONLY_READ: ContextVar[bool] = ContextVar("only_read", default=False)


class _Taken(BaseException):
    """In place of what a job would do with a command that is only read."""

    def __init__(self, command: Any) -> None:
        self.command = command


def read(
    command: type[T], *, description: str | None = None, arguments: Sequence[str] | None = None, prog: str | None = None
) -> T:
    """A command of that dataclass. Raises ConfigError for a part that is asked for by halves, or with values that it refuses;
    ends the process, with a message, for options that there are not, and after --help."""
    draft = _Draft(sys.argv[1:] if arguments is None else arguments)
    found: T = tyro.cli(
        command,
        prog=prog,
        default=draft.of(command),
        args=draft.arguments,
        description=description,
        config=(tyro.conf.AvoidSubcommands,),
        registry=_RULES,
    )
    return taken(found)


def read_one_of(
    commands: Mapping[str, Any], *, description: str | None = None, arguments: Sequence[str] | None = None
) -> Any:
    """The command that the first word names, one of several dataclasses."""
    draft = _Draft(sys.argv[1:] if arguments is None else arguments)
    words: list[Any] = [
        Annotated[kind, tyro.conf.subcommand(word, default=draft.of(kind), prefix_name=False)]
        for word, kind in commands.items()
    ]
    any_of: Any = Union[(*words, Annotated[None, tyro.conf.Suppress])]
    return taken(
        tyro.cli(
            any_of,
            args=draft.arguments,
            description=description,
            config=(tyro.conf.AvoidSubcommands,),
            registry=_RULES,
        )
    )


def taken(command: T) -> T:
    """The command that a job has read and is about to carry out; here it ends where it is only to be read."""
    if _ONLY_READ.get():
        raise _Taken(command)
    return command


def command_of(module: str, arguments: Sequence[str]) -> Any:
    """The command of ``python -m module arguments``, read by that job's own parser; nothing is done.

    Raises ConfigError for a module that is no such job; ends the process, with a message, for what the job would refuse.
    """
    try:
        job = import_module(module)
    except ModuleNotFoundError:
        raise ConfigError(f"{module}: there is no such job") from None
    if not {"read", "read_one_of", "taken"} & vars(job).keys():
        raise ConfigError(f"{module}: is no job that reads its options by jobs.command_line")
    given, sys.argv = sys.argv, [module, *arguments]
    only_read = _ONLY_READ.set(True)
    try:
        job.main()
    except _Taken as found:
        return found.command
    finally:
        sys.argv = given
        _ONLY_READ.reset(only_read)
    raise ConfigError(f"{module}: reads no command")


@cache
def documentation(cls: type) -> dict[str, str]:
    """The line of each field of a dataclass: the string below it, its own or that of the class it is inherited from."""
    found: dict[str, str] = {}
    for owner in reversed([owner for owner in cls.__mro__ if is_dataclass(owner)]):
        (tree,) = ast.parse(inspect.cleandoc(inspect.getsource(owner))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


@_RULES.struct_rule
def _options_of(info: StructTypeInfo) -> StructConstructorSpec | None:
    """A dataclass to the parser: the fields that one may give, each with its line."""
    cls = info.type
    if not is_dataclass(cls) or not isinstance(info.default, cls) or cls.__module__.startswith("tyro."):
        return None
    types, options = get_type_hints(cls, include_extras=True), []
    for field in fields(cls):
        if field.init:
            default, annotation = getattr(info.default, field.name), types[field.name]
            options.append(
                StructFieldSpec(
                    field.name,
                    _choices(info.default, field.name) or _concrete(annotation, default),
                    default,
                    helptext=partial(_line, info.default, field.name),
                )
            )
    return StructConstructorSpec(instantiate=partial(_made, cls), fields=tuple(options))


def _made(cls: type[T], **values: Any) -> T:
    """Raises ConfigError for what the dataclass itself refuses, by whichever ValueError: it is an option that is wrong."""
    try:
        return cls(**values)
    except UserError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _line(draft: Any, name: str) -> str | None:
    line = documentation(draft.__class__).get(name)
    return f"{line} Each has options of its own: name one beside --help." if _choices(draft, name) else line


def _choices(draft: Any, name: str) -> Any:
    """All values of the field that tells apart the dataclasses which can stand where ``draft`` does; None for other fields."""
    return vars(draft).get("__choices__", {}).get(name)


def _concrete(annotation: Any, default: Any) -> Any:
    """A field's type; that of its draft, where it has one: one of several, or what a type variable stands for."""
    if not is_dataclass(default) or (get_origin(annotation) is Annotated and is_dataclass(_bare(annotation)[0])):
        return annotation
    return Annotated[(type(default), *getattr(annotation, "__metadata__", ("",)))]


class _Draft:
    """Defaults for the parser: instances that nobody has checked, with the optional parts in that the arguments name."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = list(arguments)
        self._options = [argument.partition("=")[0].replace("_", "-") for argument in arguments]
        self._helps = bool({"-h", "--help"} & set(arguments))

    def of(self, kind: Any, path: str = "-", base: Any = MISSING) -> Any:
        """An instance of a dataclass with the values of ``base`` or its defaults; tyro.MISSING for what must be given."""
        cls, types = get_origin(kind) or kind, _field_types(kind)
        draft = object.__new__(cls)
        for field in fields(cls):
            value = getattr(base, field.name) if base is not MISSING else _default(field)
            annotation, elided = _bare(types[field.name])
            name = field.name.replace("_", "-")
            below = path if elided else f"--{name}" if path == "-" else f"{path}.{name}"
            object.__setattr__(draft, field.name, self._value(annotation, below, value) if field.init else value)
        return draft

    def _value(self, annotation: Any, path: str, value: Any) -> Any:
        if is_dataclass(get_origin(annotation) or annotation):
            return self.of(annotation, path, MISSING if value is tyro.MISSING else value)
        if value is None and (parts := _parts(annotation)) and (self._helps or self._given(path)):
            return self._part(parts, path)
        return value

    def _given(self, path: str) -> list[str]:
        return [option for option in self._options if option.startswith(f"{path}.")]

    def _part(self, parts: list[Any], path: str) -> Any:
        """The draft of the one part there is, or of that of several which the arguments name."""
        if len(parts) == 1:
            return self.of(parts[0], path)
        field, by_name = _told_apart(parts)
        named = self._value_of(f"{path}.{field}")
        if named not in by_name and not self._helps:
            problem = f"beside {self._given(path)[0]}" if named is None else f"not {named}"
            raise ConfigError(f"{path}.{field} must be one of {', '.join(by_name)}, {problem}")
        draft = self.of(by_name.get(named or "", parts[0]), path)
        object.__setattr__(draft, "__choices__", {field: Literal[tuple(by_name)]})
        return draft

    def _value_of(self, option: str) -> str | None:
        for argument, following, name in zip(self.arguments, [*self.arguments[1:], None], self._options, strict=True):
            if name == option:
                return argument.partition("=")[2] if "=" in argument else following
        return None


def _field_types(kind: Any) -> dict[str, Any]:
    """Of a dataclass, type variables replaced by what ``kind`` gives them."""
    cls = get_origin(kind) or kind
    known = dict(zip(getattr(cls, "__parameters__", ()), get_args(kind), strict=False))
    found = {}
    for name, annotation in get_type_hints(cls, include_extras=True).items():
        free = getattr(annotation, "__parameters__", ())
        if free and not isinstance(annotation, TypeVar):
            annotation = annotation[tuple(known.get(variable, variable) for variable in free)]
        found[name] = known.get(annotation, annotation) if isinstance(annotation, TypeVar) else annotation
    return found


def _bare(annotation: Any) -> tuple[Any, bool]:
    """Without what is said about it, and whether its options stand without its name before them."""
    elided = False
    while get_origin(annotation) is Annotated:
        elided = elided or any(getattr(said, "name", None) == "" for said in annotation.__metadata__)
        annotation = annotation.__origin__
    return annotation, elided


def _parts(annotation: Any) -> list[Any]:
    """The dataclasses of a union that may also be None; none for anything else."""
    if get_origin(annotation) not in (Union, UnionType) or type(None) not in get_args(annotation):
        return []
    members = [_bare(member)[0] for member in get_args(annotation)]
    flat = [part for member in members for part in (get_args(member) if get_origin(member) is Union else (member,))]
    return [part for part in flat if is_dataclass(part)]


def _told_apart(parts: list[Any]) -> tuple[str, dict[str, Any]]:
    """The field whose constant tells the dataclasses apart, and each by it."""
    types = {part: get_type_hints(part) for part in parts}
    for name in types[parts[0]]:
        if all(get_origin(of.get(name)) is Literal and len(get_args(of[name])) == 1 for of in types.values()):
            return name, {get_args(of[name])[0]: part for part, of in types.items()}
    raise TypeError(f"no constant field tells {', '.join(part.__name__ for part in parts)} apart")


def _default(field: Any) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return tyro.MISSING if field.default is MISSING else field.default
