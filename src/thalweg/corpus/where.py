"""Which rows a search looks at: a condition on the stored columns, as SQL or as an expression of pyarrow."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from thalweg.errors import InvalidInputError, MissingExtraError

POSSIBLE = (
    "a condition compares columns with values: year > 2000 and lang = 'en' and not title like 'The %'; also or, in, "
    "between, is null, ilike, true, false and parentheses"
)

_NUMBER = "number of the row"
"""A column of our own that no file has: which rows are left."""


class Where:
    """A condition that has been checked against the columns of a file.

    Args:
        condition: SQL, or a `pyarrow.compute.Expression`.
        schema: the columns of the file without the vector.
        path: of the file, for messages.

    Raises:
        InvalidInputError: it is no condition, names a column that is not there, or compares what cannot be compared.
        MissingExtraError: SQL needs sqlglot, which is not installed.
    """

    def __init__(self, condition: Any, schema: pa.Schema, path: str) -> None:
        self._expression = _parsed(condition) if isinstance(condition, str) else condition
        self._told, self._path = condition, path
        if not isinstance(self._expression, pc.Expression):
            raise InvalidInputError(
                f"where must be a str or a pyarrow.compute.Expression, got {type(condition).__name__}: "
                f"{condition!r:.80}"
            )
        empty = schema.empty_table()
        try:
            empty.filter(self._expression)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"where {str(condition)!r:.200} does not fit {path}: {_reason(error)}; its columns are "
                f"{', '.join(f'{field.name} ({field.type})' for field in schema)}"
            ) from error
        self.columns: tuple[str, ...] = tuple(name for name in schema.names if self._needs(empty, name))

    def _needs(self, empty: Any, name: str) -> bool:
        try:
            empty.drop_columns([name]).filter(self._expression)
        except (pa.ArrowException, TypeError, ValueError):
            return True
        return False

    def rows(self, table: Any) -> npt.NDArray[np.int64]:
        """The numbers of the rows of a table for which the condition is true, ascending.

        Raises:
            InvalidInputError: it cannot be computed for a row, such as a division by zero.
        """
        numbers = pa.array(np.arange(table.num_rows, dtype=np.int64))
        try:
            kept = table.append_column(_NUMBER, numbers).filter(self._expression)
        except pa.ArrowException as error:
            raise InvalidInputError(
                f"where {str(self._told)!r:.200} cannot be computed for the rows of {self._path}: {error}"
            ) from error
        return np.sort(kept.column(_NUMBER).to_numpy())


def _reason(error: Exception) -> str:
    message = str(error).splitlines()[0]
    missing = re.match(r"No match for FieldRef\.Name\((.*?)\)", message)
    return message if missing is None else f"there is no column {missing[1]!r}"


def _parsed(text: str) -> Any:
    """SQL to an expression of pyarrow. Null is neither true nor false, as in SQL."""
    try:
        import sqlglot
        from sqlglot.errors import SqlglotError
    except ImportError as error:
        raise MissingExtraError(
            "where as SQL needs sqlglot: pip install 'thalweg[search]'; or pass a pyarrow.compute.Expression"
        ) from error
    try:
        # In parentheses a condition can only be a condition, whatever words it begins with.
        tree = sqlglot.parse_one(f"({text}\n)")
        if not isinstance(tree, sqlglot.exp.Paren):
            raise _Refused(text, tree)
        return _Reader(text).condition(tree)
    except SqlglotError as error:
        (first, *_) = getattr(error, "errors", None) or [{}]
        reason = str(first.get("description") or str(error).splitlines()[0])
        near = f" near {first['highlight']!r}" if first.get("highlight") else ""
        raise InvalidInputError(
            f"where {text!r:.200} cannot be read ({reason.rstrip('.')}{near}): {POSSIBLE}"
        ) from None
    except RecursionError:
        raise InvalidInputError(f"where {text!r:.200} is nested too deeply; use in (…) for many values") from None


class _Refused(InvalidInputError):
    def __init__(self, text: str, node: Any) -> None:
        told = node.sql() if hasattr(node, "sql") else str(node)
        super().__init__(f"where {text!r:.200} uses {told!r:.80}, which is not supported; {POSSIBLE}")


class _Reader:
    """Nodes of sqlglot to expressions of pyarrow; a node or an argument of one that is not listed here is refused."""

    def __init__(self, text: str) -> None:
        from sqlglot import exp

        self._text = text
        self._exp = exp
        self._compare: dict[type, Callable[[Any, Any], Any]] = {
            exp.EQ: lambda a, b: a == b,
            exp.NEQ: lambda a, b: a != b,
            exp.GT: lambda a, b: a > b,
            exp.GTE: lambda a, b: a >= b,
            exp.LT: lambda a, b: a < b,
            exp.LTE: lambda a, b: a <= b,
        }

    def condition(self, node: Any) -> Any:
        """A node that is true or false of a row."""
        exp, kind = self._exp, type(node)
        if kind is exp.Paren:
            self._check(node, "this")
            return self.condition(node.this)
        if kind is exp.Not:
            self._check(node, "this")
            return ~self.condition(node.this)
        if kind in (exp.And, exp.Or):
            self._check(node, "this", "expression")
            left, right = self.condition(node.this), self.condition(node.expression)
            return left & right if kind is exp.And else left | right
        if kind in self._compare:
            self._check(node, "this", "expression")
            return self._compare[kind](self._value(node.this), self._value(node.expression))
        if kind in (exp.Like, exp.ILike):
            self._check(node, "this", "expression", "negate")
            pattern = self._literal(node.expression)
            if not isinstance(pattern, str):
                raise self._refused(node)
            found = pc.match_like(self._column(node.this), pattern, ignore_case=kind is exp.ILike)
            return self._negated(node, found)
        if kind is exp.In:
            self._check(node, "this", "expressions", "negate")
            if not node.expressions:
                raise self._refused(node)
            column = self._column(node.this)
            # As == and not as isin, which wants the very type of the column and takes a null for false.
            found = self._any_of([column == self._literal(each) for each in node.expressions])
            return self._negated(node, found)
        if kind is exp.Between:
            self._check(node, "this", "low", "high", "negate")
            value = self._value(node.this)
            found = (value >= self._value(node.args["low"])) & (value <= self._value(node.args["high"]))
            return self._negated(node, found)
        if kind is exp.Is:
            self._check(node, "this", "expression", "negate")
            if type(node.expression) is not exp.Null:
                raise self._refused(node)
            return self._negated(node, self._column(node.this).is_null())
        if kind is exp.Column:
            return self._column(node)
        if kind is exp.Boolean:
            return pc.scalar(bool(node.this))
        raise self._refused(node)

    def _any_of(self, conditions: list[Any]) -> Any:
        """True where one is; a balanced tree, so that thousands of them are not nested as deep."""
        while len(conditions) > 1:
            pairs = [a | b for a, b in zip(conditions[::2], conditions[1::2], strict=False)]
            conditions = pairs + conditions[2 * len(pairs) :]
        return conditions[0]

    def _value(self, node: Any) -> Any:
        return self._column(node) if type(node) is self._exp.Column else pc.scalar(self._literal(node))

    def _column(self, node: Any) -> Any:
        if type(node) is self._exp.Paren:
            return self._column(node.this)
        if type(node) is not self._exp.Column:
            raise self._refused(node)
        if any(node.args.get(part) for part in ("table", "db", "catalog")):
            raise InvalidInputError(
                f"where {self._text!r:.200}: {node.sql()!r:.80} is no column; the name of one that has a dot stands in "
                f"double quotes"
            )
        self._check(node, "this")
        return pc.field(node.name)

    def _literal(self, node: Any) -> Any:
        exp, kind = self._exp, type(node)
        if kind is exp.Neg:
            value = self._literal(node.this)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return -value
        elif kind is exp.Boolean:
            return bool(node.this)
        elif kind is exp.Literal:
            text = str(node.this)
            if node.is_string:
                return text
            try:
                number = int(text) if text.isdecimal() else float(text)
            except ValueError:
                raise self._refused(node) from None
            if isinstance(number, float) or number < 2**63:
                return number
        elif kind is exp.Null:
            raise InvalidInputError(
                f"where {self._text!r:.200}: nothing is equal to null; write column is null, or column is not null"
            )
        raise self._refused(node)

    @staticmethod
    def _negated(node: Any, found: Any) -> Any:
        return ~found if node.args.get("negate") else found

    def _check(self, node: Any, *known: str) -> None:
        if any(value and name not in known for name, value in node.args.items()):
            raise self._refused(node)

    def _refused(self, node: Any) -> _Refused:
        return _Refused(self._text, node)
