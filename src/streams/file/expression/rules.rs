//! The rules of types: what each operator, function and cast takes and gives, and what is computed at load.
//!
//! [`check`](mod@super::check) walks the tree and asks here. What must always hold: two expressions are compared or mixed only when SQLite would
//! compare their values as this language means it; nothing is computed at load that a record could change.

use std::ops::Range;

use sqlparser::ast::{self as sql, BinaryOperator, Expr, Value};

use super::{
    super::{
        json::read_plain,
        suggest::did_you_mean,
        time::parse_duration,
        value::{ColumnType, DataType, Datum},
    },
    ExpressionError, Result, compile,
    function::{self, Overload, Parameter, ResultType},
    number,
    typed::{Arithmetic, Comparison, Node, Typed},
};

pub(super) fn at(mut error: ExpressionError, span: &Range<usize>) -> ExpressionError {
    if error.span.is_empty() {
        error.span = span.clone();
    }
    error
}

pub(super) fn non_deterministic(name: &str, span: Range<usize>) -> ExpressionError {
    ExpressionError::new(
        span,
        format!("`{name}` gives another answer each time; a replay would give other results"),
    )
    .help("use the record's own time and ids, or `uuid5` for an id made from them")
}

pub(super) fn constant(datum: Datum, data_type: DataType, span: Range<usize>) -> Typed {
    Typed { nullable: datum.is_null(), node: Node::Constant(datum), data_type: Some(data_type), span }
}

pub(super) fn literal(value: &Value, span: Range<usize>) -> Result<Typed> {
    Ok(match value {
        Value::Number(digits, _) => {
            if digits.bytes().all(|byte| byte.is_ascii_digit())
                && let Ok(int) = digits.parse()
            {
                constant(Datum::Int(int), DataType::Int, span)
            } else {
                constant(Datum::float(number::parse_real(digits)), DataType::Float, span)
            }
        }
        Value::SingleQuotedString(text) => constant(Datum::text(text), DataType::Text, span),
        Value::Boolean(value) => constant(Datum::Bool(*value), DataType::Bool, span),
        Value::Null => Typed { node: Node::Constant(Datum::Null), data_type: None, nullable: true, span },
        Value::Placeholder(_) => return Err(ExpressionError::new(span, "there are no parameters here")),
        other => {
            return Err(ExpressionError::new(span, format!("the literal {other} is not available"))
                .help("text is written in single quotes: 'text'"));
        }
    })
}

pub(super) fn interval_literal(interval: &sql::Interval, span: Range<usize>) -> Result<Typed> {
    let error = || {
        ExpressionError::new(span.clone(), "this is not a duration")
            .help("write `interval '1h30m'` (units ms, s, m, h, d) or `interval '5' minute`")
    };
    let Expr::Value(value) = interval.value.as_ref() else { return Err(error()) };
    let Value::SingleQuotedString(text) = &value.value else { return Err(error()) };
    let ms = match &interval.leading_field {
        None => parse_duration(text),
        Some(field) => {
            let unit = match field {
                sql::DateTimeField::Second | sql::DateTimeField::Seconds => "s",
                sql::DateTimeField::Minute | sql::DateTimeField::Minutes => "m",
                sql::DateTimeField::Hour | sql::DateTimeField::Hours => "h",
                sql::DateTimeField::Day | sql::DateTimeField::Days => "d",
                _ => return Err(error()),
            };
            parse_duration(&format!("{text}{unit}"))
        }
    };
    Ok(constant(Datum::Duration(ms.ok_or_else(error)?), DataType::Duration, span))
}

pub(super) fn constant_of(target: DataType, text: &str, span: Range<usize>) -> Result<Typed> {
    match read_plain(target, text) {
        Some(datum) => Ok(constant(datum, target, span)),
        None => Err(not_a(target, text, span)),
    }
}

pub(super) fn not_a(target: DataType, text: &str, span: Range<usize>) -> ExpressionError {
    let error = ExpressionError::new(span, format!("'{text}' is not a {target}"));
    match target {
        DataType::Timestamp => error.help("write it as RFC 3339 with an offset: '2026-11-23T10:00:00Z'"),
        DataType::Duration => error.help("write it with units ms, s, m, h, d: '1h30m'"),
        _ => error,
    }
}

/// Makes a bare NULL, or a constant text, be of the type that its surroundings want.
pub(super) fn adapt(typed: &mut Typed, target: DataType) -> Result<()> {
    match (typed.data_type, &typed.node) {
        (None, _) => typed.data_type = Some(target),
        (Some(DataType::Text), Node::Constant(Datum::Text(text)))
            if matches!(target, DataType::Timestamp | DataType::Uuid | DataType::Duration) =>
        {
            *typed = constant_of(target, text, typed.span.clone())?;
        }
        _ => {}
    }
    Ok(())
}

/// Brings expressions that stand for each other to one type: equal types, or numbers (then a double if one is).
pub(super) fn unify(parts: &mut [Typed], what: &str) -> Result<Option<DataType>> {
    // The type is told by the parts that are not mere literals, if there are any.
    let told = parts
        .iter()
        .filter(|part| part.constant().is_none())
        .chain(parts.iter())
        .find_map(|part| part.data_type);
    let Some(target) = told else { return Ok(None) };
    for part in parts.iter_mut() {
        adapt(part, target)?;
    }
    let mut result = target;
    for part in parts.iter() {
        match part.data_type {
            Some(own) if own == target => {}
            Some(own) if own.is_numeric() && target.is_numeric() => result = DataType::Float,
            Some(own) => {
                return Err(ExpressionError::new(
                    part.span.clone(),
                    format!(
                        "{target} and {own} cannot be {}",
                        if what == "compared" { what } else { "mixed" }
                    ),
                )
                .help(if what == "compared" {
                    format!("cast one side: `cast(… as {target})`")
                } else {
                    format!("{what} have one type")
                }));
            }
            None => {}
        }
    }
    Ok(Some(result))
}

pub(super) fn boolean(mut typed: Typed, what: &str) -> Result<Typed> {
    match typed.data_type {
        Some(DataType::Bool) => Ok(typed),
        None => {
            typed.data_type = Some(DataType::Bool);
            Ok(typed)
        }
        Some(other) => {
            let error =
                ExpressionError::new(typed.span.clone(), format!("{what} needs a bool, this is {other}"));
            Err(if other.is_numeric() { error.help("compare it: `… <> 0`") } else { error })
        }
    }
}

pub(super) fn negated_condition(operand: Typed, span: Range<usize>) -> Typed {
    let nullable = operand.nullable;
    Typed { node: Node::Not(Box::new(operand)), data_type: Some(DataType::Bool), nullable, span }
}

pub(super) fn join_conditions(
    make: fn(Box<Typed>, Box<Typed>) -> Node,
    left: Typed,
    right: Typed,
    span: Range<usize>,
) -> Typed {
    let nullable = left.nullable || right.nullable;
    Typed { node: make(Box::new(left), Box::new(right)), data_type: Some(DataType::Bool), nullable, span }
}

pub(super) fn same(left: Typed, right: Typed, negated: bool, span: Range<usize>) -> Typed {
    Typed {
        node: Node::Same { negated, left: Box::new(left), right: Box::new(right) },
        data_type: Some(DataType::Bool),
        nullable: false,
        span,
    }
}

pub(super) fn compare(op: Comparison, left: Typed, right: Typed, span: Range<usize>) -> Result<Typed> {
    for side in [&left, &right] {
        if side.data_type.is_none() {
            let form = if op == Comparison::NotEqual { "is not null" } else { "is null" };
            return Err(ExpressionError::new(span, "a comparison with NULL is never true")
                .help(format!("write `… {form}`")));
        }
    }
    compare_any(op, left, right, span)
}

/// A comparison where NULL may be written, as the branches of a `case` may.
pub(super) fn compare_any(op: Comparison, left: Typed, right: Typed, span: Range<usize>) -> Result<Typed> {
    let mut sides = vec![left, right];
    let data_type = unify(&mut sides, "compared")?;
    if data_type == Some(DataType::Json) {
        return Err(ExpressionError::new(span, "JSON documents cannot be compared")
            .help("take a part out: `doc ->> 'member'`"));
    }
    let nullable = sides.iter().any(|side| side.nullable);
    let right = Box::new(sides.remove(1));
    let left = Box::new(sides.remove(0));
    Ok(Typed { node: Node::Compare(op, left, right), data_type: Some(DataType::Bool), nullable, span })
}

pub(super) fn binary(op: &BinaryOperator, left: Typed, right: Typed, span: Range<usize>) -> Result<Typed> {
    let comparison = |op| compare(op, left.clone(), right.clone(), span.clone());
    match op {
        BinaryOperator::Eq => comparison(Comparison::Equal),
        BinaryOperator::NotEq => comparison(Comparison::NotEqual),
        BinaryOperator::Lt => comparison(Comparison::Less),
        BinaryOperator::LtEq => comparison(Comparison::LessOrEqual),
        BinaryOperator::Gt => comparison(Comparison::Greater),
        BinaryOperator::GtEq => comparison(Comparison::GreaterOrEqual),
        BinaryOperator::And => {
            Ok(join_conditions(Node::And, boolean(left, "`and`")?, boolean(right, "`and`")?, span))
        }
        BinaryOperator::Or => {
            Ok(join_conditions(Node::Or, boolean(left, "`or`")?, boolean(right, "`or`")?, span))
        }
        BinaryOperator::Plus => arithmetic(Arithmetic::Add, left, right, span),
        BinaryOperator::Minus => arithmetic(Arithmetic::Subtract, left, right, span),
        BinaryOperator::Multiply => arithmetic(Arithmetic::Multiply, left, right, span),
        BinaryOperator::Divide => arithmetic(Arithmetic::Divide, left, right, span),
        BinaryOperator::Modulo => arithmetic(Arithmetic::Remainder, left, right, span),
        BinaryOperator::StringConcat => concat(left, right, span),
        BinaryOperator::Arrow => call("json_get", vec![left, right], span),
        BinaryOperator::LongArrow => call("json_get_text", vec![left, right], span),
        other => Err(ExpressionError::new(span, format!("the operator `{other}` is not available"))),
    }
}

pub(super) fn arithmetic(
    op: Arithmetic,
    mut left: Typed,
    mut right: Typed,
    span: Range<usize>,
) -> Result<Typed> {
    use Arithmetic::{Add, Divide, Multiply, Remainder, Subtract};
    use DataType::{Duration, Float, Int, Timestamp};
    // A text beside a moment is meant as a duration (`at + '5m'`), or as a moment when two are subtracted.
    if left.data_type == Some(Timestamp) && matches!(op, Add | Subtract) {
        let duration =
            matches!(&right.node, Node::Constant(Datum::Text(text)) if parse_duration(text).is_some());
        adapt(&mut right, if duration { Duration } else { Timestamp })?;
    }
    match (left.data_type, right.data_type) {
        (None, None) => (left.data_type, right.data_type) = (Some(Int), Some(Int)),
        (None, Some(other)) => left.data_type = Some(other),
        (Some(other), None) => right.data_type = Some(if other == Timestamp { Duration } else { other }),
        _ => {}
    }
    let (a, b) = (left.data_type.unwrap_or(Int), right.data_type.unwrap_or(Int));
    let result = match (op, a, b) {
        (_, Int, Int) => Int,
        (_, a, b) if a.is_numeric() && b.is_numeric() => Float,
        (Add, Timestamp, Duration) | (Add, Duration, Timestamp) | (Subtract, Timestamp, Duration) => {
            Timestamp
        }
        (Subtract, Timestamp, Timestamp) | (Add | Subtract, Duration, Duration) => Duration,
        (Multiply, Duration, Int) | (Multiply, Int, Duration) | (Divide, Duration, Int) => Duration,
        _ => {
            let error = ExpressionError::new(span, format!("`{a} {} {b}` is not defined", op.sign()));
            return Err(if a == DataType::Text && op == Add {
                error.help("texts are joined with `||`")
            } else if a == DataType::Text || b == DataType::Text {
                error.help("cast the text: `cast(… as int)`")
            } else {
                error
            });
        }
    };
    // Division by zero is NULL; doubles may cancel to what is no number.
    let nullable =
        left.nullable || right.nullable || matches!(op, Divide | Remainder) || matches!(result, Float);
    Ok(Typed {
        node: Node::Arithmetic(op, Box::new(left), Box::new(right)),
        data_type: Some(result),
        nullable,
        span,
    })
}

pub(super) fn concat(mut left: Typed, mut right: Typed, span: Range<usize>) -> Result<Typed> {
    for side in [&mut left, &mut right] {
        match side.data_type {
            None => side.data_type = Some(DataType::Text),
            Some(DataType::Text | DataType::Int | DataType::Float | DataType::Uuid | DataType::Timestamp) => {
            }
            Some(other) => {
                return Err(ExpressionError::new(
                    side.span.clone(),
                    format!("`||` joins texts, this is {other}"),
                )
                .help("cast it: `cast(… as text)`"));
            }
        }
    }
    let nullable = left.nullable || right.nullable;
    Ok(Typed {
        node: Node::Concat(Box::new(left), Box::new(right)),
        data_type: Some(DataType::Text),
        nullable,
        span,
    })
}

pub(super) fn cast_target(data_type: &sql::DataType, span: &Range<usize>) -> Result<DataType> {
    let name = data_type.to_string().to_lowercase();
    let target = match name.as_str() {
        "integer" | "bigint" | "int8" | "int64" => Some(DataType::Int),
        "real" | "double" | "double precision" | "float8" | "float64" => Some(DataType::Float),
        "varchar" | "string" | "character varying" => Some(DataType::Text),
        "boolean" => Some(DataType::Bool),
        "interval" => Some(DataType::Duration),
        "jsonb" => Some(DataType::Json),
        name => DataType::parse(name),
    };
    target.ok_or_else(|| {
        let names: Vec<&str> = DataType::ALL.iter().map(|known| known.name()).collect();
        let error = ExpressionError::new(span.clone(), format!("unknown type `{name}`"));
        match did_you_mean(&name, names.iter().copied()) {
            Some(near) => error.help(format!("did you mean `{near}`?")),
            None => error.help(format!("the types are {}", names.join(", "))),
        }
    })
}

pub(super) fn cast(operand: Typed, target: DataType, span: Range<usize>) -> Result<Typed> {
    use DataType::{Bool, Duration, Float, Int, Json, Text, Timestamp, Uuid};
    let Some(from) = operand.data_type else {
        return Ok(Typed {
            node: Node::Constant(Datum::Null),
            data_type: Some(target),
            nullable: true,
            span,
        });
    };
    let may_fail = match (from, target) {
        // Not for int: arithmetic beyond 64 bits made a double of it, which the cast cuts back.
        (from, target) if from == target && target != Int => return Ok(Typed { span, ..operand }),
        (_, Text)
        | (Int | Float | Text, Int | Float)
        | (Bool, Int)
        | (Int, Bool | Timestamp | Duration)
        | (Timestamp | Duration, Int) => false,
        (Text, Timestamp | Duration | Uuid | Json | Bool) => true,
        _ => {
            return Err(ExpressionError::new(span, format!("a {from} cannot be cast to {target}")));
        }
    };
    let nullable = operand.nullable || may_fail;
    Ok(Typed { node: Node::Cast(Box::new(operand), target), data_type: Some(target), nullable, span })
}

pub(super) fn call(name: &str, mut args: Vec<Typed>, span: Range<usize>) -> Result<Typed> {
    let Some(function) = function::find(name) else {
        return Err(ExpressionError::new(span, format!("unknown function `{name}`")));
    };
    let signature = function.signatures.iter().find(|signature| {
        let count = signature.parameters.len();
        let fits = args.len() == count
            || (signature.repeats && !args.is_empty() && args.len().is_multiple_of(count));
        fits && signature
            .parameters
            .iter()
            .cycle()
            .zip(&args)
            .all(|(parameter, arg)| accepts(*parameter, arg))
    });
    let Some(signature) = signature else {
        let given: Vec<String> =
            args.iter().map(|arg| arg.data_type.map_or("null".to_owned(), |t| t.to_string())).collect();
        let known: Vec<String> =
            function.signatures.iter().map(|s| reference_signature(function.name, s)).collect();
        return Err(ExpressionError::new(span, format!("`{name}({})` is not defined", given.join(", ")))
            .help(format!("it is: {}", known.join(" or "))));
    };
    for (parameter, arg) in signature.parameters.iter().cycle().zip(&mut args) {
        match parameter {
            Parameter::Is(target) => adapt(arg, *target)?,
            Parameter::Number => adapt(arg, DataType::Int)?,
            Parameter::Any => adapt(arg, DataType::Text)?,
            Parameter::ConstantText => {}
        }
    }
    let constants: Vec<Option<&Datum>> = args.iter().map(Typed::constant).collect();
    // Bound here only to see whether the constants are right; the compiler binds again.
    drop(
        (signature.bind)(&constants)
            .map_err(|(argument, message)| ExpressionError::new(args[argument].span.clone(), message))?,
    );
    let data_type = match signature.result {
        ResultType::Is(data_type) => Some(data_type),
        ResultType::OfFirst => args[0].data_type,
    };
    let nullable = signature.may_be_null || (signature.strict && args.iter().any(|arg| arg.nullable));
    Ok(Typed { node: Node::Call(Overload { function, signature }, args), data_type, nullable, span })
}

/// `name(parameters) -> result`, as the reference and messages show it.
pub(crate) fn reference_signature(name: &str, signature: &function::Signature) -> String {
    let parameters: Vec<String> = signature.parameters.iter().map(ToString::to_string).collect();
    let result = match signature.result {
        ResultType::Is(data_type) => data_type.to_string(),
        ResultType::OfFirst => parameters[0].clone(),
    };
    let more = if signature.repeats { ", …" } else { "" };
    format!(
        "{name}({}{more}) -> {result}{}",
        parameters.join(", "),
        if signature.may_be_null { "?" } else { "" }
    )
}

pub(super) fn accepts(parameter: Parameter, arg: &Typed) -> bool {
    let Some(own) = arg.data_type else { return parameter != Parameter::ConstantText };
    match parameter {
        Parameter::Any => true,
        Parameter::Is(wanted) if wanted == own => true,
        // A constant text is read as what the function wants, if nothing else fits better.
        Parameter::Is(DataType::Timestamp | DataType::Uuid | DataType::Duration) => {
            matches!(&arg.node, Node::Constant(Datum::Text(text)) if matches!(parameter, Parameter::Is(wanted) if read_plain(wanted, text).is_some()))
        }
        Parameter::Is(_) => false,
        Parameter::Number => own.is_numeric(),
        Parameter::ConstantText => matches!(arg.node, Node::Constant(Datum::Text(_))),
    }
}

/// Computes what needs no record: an expression of constants is its value; `and`/`or` with a constant is one side.
pub(super) fn fold(typed: Typed) -> Result<Typed> {
    let folded = match typed.node {
        Node::And(a, b) => match (a.constant(), b.constant()) {
            (Some(Datum::Bool(false)), _) | (_, Some(Datum::Bool(false))) => {
                constant(Datum::Bool(false), DataType::Bool, typed.span)
            }
            (Some(Datum::Bool(true)), _) => *b,
            (_, Some(Datum::Bool(true))) => *a,
            _ => Typed { node: Node::And(a, b), ..typed },
        },
        Node::Or(a, b) => match (a.constant(), b.constant()) {
            (Some(Datum::Bool(true)), _) | (_, Some(Datum::Bool(true))) => {
                constant(Datum::Bool(true), DataType::Bool, typed.span)
            }
            (Some(Datum::Bool(false)), _) => *b,
            (_, Some(Datum::Bool(false))) => *a,
            _ => Typed { node: Node::Or(a, b), ..typed },
        },
        node => Typed { node, ..typed },
    };
    if matches!(folded.node, Node::Constant(_)) || !folded.slots().is_empty() {
        return Ok(folded);
    }
    let span = folded.span.clone();
    let data_type = folded.data_type;
    match compile::Expression::new(folded).evaluate(&[], &[]) {
        Ok(value) => Ok(Typed { nullable: value.is_null(), node: Node::Constant(value), data_type, span }),
        Err(error) => Err(ExpressionError::new(span, format!("this fails on every record: {error}"))),
    }
}

/// The type that a column declared in a file has, with the message for one that is none.
pub(crate) fn declared_type(text: &str) -> Result<ColumnType> {
    ColumnType::parse(text).ok_or_else(|| {
        let names: Vec<&str> = DataType::ALL.iter().map(|known| known.name()).collect();
        let error = ExpressionError::new(0..text.len(), format!("unknown type `{text}`"));
        match did_you_mean(text.trim_end_matches('?'), names.iter().copied()) {
            Some(near) => error.help(format!("did you mean `{near}`?")),
            None => error.help(format!("the types are {}; `?` after one allows null", names.join(", "))),
        }
    })
}
