//! Names to slots and types to every node: the only door from text to a [`Typed`] expression.
//!
//! Order: parse, resolve names, check types bottom-up (a constant text becomes a moment, UUID or duration where the other side is
//! one), fold constants, and in a table's `select` take the aggregates out. What must always hold: what leaves here has a type, has no
//! unknown name, and does nothing that another run would do differently.

use std::ops::Range;

use sqlparser::ast::{
    self as sql, BinaryOperator, DuplicateTreatment, Expr, FunctionArg, FunctionArgExpr, FunctionArguments,
    UnaryOperator, Value,
};

use super::{
    super::{
        json::read_plain,
        suggest::did_you_mean,
        time::parse_duration,
        value::{ColumnType, DataType, Datum},
    },
    ExpressionError, Result,
    aggregate::{Aggregate, AggregateKind},
    compile,
    function::{self, FUNCTIONS, NON_DETERMINISTIC, Overload, Parameter, ResultType, SPECIAL_FORMS},
    number,
    parse::{Source, parse},
    scope::{Scope, Side, Slot},
    typed::{Arithmetic, Comparison, Node, Typed},
};

/// Checks an expression of a stream, join or sink: any type, no aggregates.
pub fn check(text: &str, scope: &Scope) -> Result<Typed> {
    let source = Source::new(text);
    let tree = parse(&source)?;
    let typed =
        Checker { source: &source, scope, aggregates: None, inside_aggregate: false }.expression(&tree)?;
    settled(typed)
}

/// Checks a condition (`where`, `having`): like [`check`], and it must be a bool.
pub fn check_boolean(text: &str, scope: &Scope) -> Result<Typed> {
    let typed = check(text, scope)?;
    let span = typed.span.clone();
    boolean(typed, "a condition").map_err(|mut error| {
        error.span = span;
        error
    })
}

/// Checks an expression of a table's `select`: aggregates over `input`, everything around them over `output` (group columns and
/// window bounds). New aggregates are appended to `aggregates`; an equal one is used again. Columns of the result stand in
/// [`Side::Right`] when they are aggregates.
pub fn check_select(
    text: &str,
    output: &Scope,
    input: &Scope,
    aggregates: &mut Vec<Aggregate>,
) -> Result<Typed> {
    let source = Source::new(text);
    let tree = parse(&source)?;
    let mut checker = Checker {
        source: &source,
        scope: output,
        aggregates: Some((input, aggregates)),
        inside_aggregate: false,
    };
    let typed = checker.expression(&tree)?;
    settled(typed)
}

/// Refuses a bare NULL: nothing says what type it would have.
fn settled(typed: Typed) -> Result<Typed> {
    if typed.data_type.is_none() {
        return Err(ExpressionError::new(typed.span, "nothing here says which type this NULL has")
            .help("write for example `cast(null as int)`"));
    }
    Ok(typed)
}

struct Checker<'a, 'b> {
    source: &'a Source<'a>,
    scope: &'a Scope,
    /// Where aggregates are allowed: the scope of their arguments, and the list they go to.
    aggregates: Option<(&'a Scope, &'b mut Vec<Aggregate>)>,
    inside_aggregate: bool,
}

impl Checker<'_, '_> {
    fn expression(&mut self, expr: &Expr) -> Result<Typed> {
        let span = self.source.span(expr);
        let typed = self.node(expr, span)?;
        fold(typed)
    }

    fn node(&mut self, expr: &Expr, span: Range<usize>) -> Result<Typed> {
        match expr {
            Expr::Nested(inner) => self.expression(inner),
            Expr::Identifier(name) => {
                if name.quote_style.is_none()
                    && NON_DETERMINISTIC.contains(&name.value.to_lowercase().as_str())
                    && self.scope.resolve(None, &name.value, span.clone()).is_err()
                {
                    return Err(non_deterministic(&name.value, span));
                }
                self.column(None, &name.value, span)
            }
            Expr::CompoundIdentifier(parts) => match parts.as_slice() {
                [node, column] => self.column(Some(&node.value), &column.value, span),
                _ => Err(ExpressionError::new(span, "a column is written `column` or `node.column`")),
            },
            Expr::Value(value) => literal(&value.value, span),
            Expr::UnaryOp { op, expr } => self.unary(*op, expr, span),
            Expr::BinaryOp { left, op, right } => {
                let (left, right) = (self.expression(left)?, self.expression(right)?);
                binary(op, left, right, span)
            }
            Expr::IsNull(inner) => self.is_null(inner, false, span),
            Expr::IsNotNull(inner) => self.is_null(inner, true, span),
            Expr::IsTrue(inner) => self.is_truth(inner, true, false, span),
            Expr::IsNotTrue(inner) => self.is_truth(inner, true, true, span),
            Expr::IsFalse(inner) => self.is_truth(inner, false, false, span),
            Expr::IsNotFalse(inner) => self.is_truth(inner, false, true, span),
            Expr::IsDistinctFrom(left, right) => self.same(left, right, true, span),
            Expr::IsNotDistinctFrom(left, right) => self.same(left, right, false, span),
            Expr::Between { expr, negated, low, high } => {
                let operand = self.expression(expr)?;
                let (low, high) = (self.expression(low)?, self.expression(high)?);
                let from = compare(Comparison::GreaterOrEqual, operand.clone(), low, span.clone())?;
                let to = compare(Comparison::LessOrEqual, operand, high, span.clone())?;
                let both = join_conditions(Node::And, fold(from)?, fold(to)?, span.clone());
                Ok(if *negated { negated_condition(fold(both)?, span) } else { both })
            }
            Expr::InList { expr, list, negated } => self.in_list(expr, list, *negated, span),
            Expr::Like { negated, expr, pattern, escape_char, any: false } => {
                self.like(*negated, expr, pattern, escape_char.as_deref(), span)
            }
            Expr::ILike { .. } => Err(ExpressionError::new(span, "`ilike` is not available")
                .help("`like` already matches ASCII letters in either case")),
            Expr::Case { operand, conditions, else_result, .. } => {
                self.case(operand.as_deref(), conditions, else_result.as_deref(), span)
            }
            Expr::Cast { expr, data_type, .. } => {
                let operand = self.expression(expr)?;
                let target = cast_target(data_type, &span)?;
                cast(operand, target, span)
            }
            Expr::TypedString(typed) => {
                let target = cast_target(&typed.data_type, &span)?;
                let Value::SingleQuotedString(text) = &typed.value.value else {
                    return Err(ExpressionError::new(span, "expected a text in single quotes"));
                };
                constant_of(target, text, span)
            }
            Expr::Interval(interval) => interval_literal(interval, span),
            Expr::Substring { expr, substring_from, substring_for, .. } => {
                let mut args = vec![self.expression(expr)?];
                for part in [substring_from, substring_for].into_iter().flatten() {
                    args.push(self.expression(part)?);
                }
                call("substr", args, span)
            }
            Expr::Trim { expr, trim_where: None, trim_what: None, trim_characters: None } => {
                let args = vec![self.expression(expr)?];
                call("trim", args, span)
            }
            Expr::Function(function) => self.function(function, span),
            Expr::Subquery(_) | Expr::InSubquery { .. } | Expr::Exists { .. } => {
                Err(ExpressionError::new(span, "subqueries are not available")
                    .help("join the other table with a join node"))
            }
            Expr::Extract { .. } => Err(ExpressionError::new(span, "`extract` is not available")
                .help("use `date_trunc`, `epoch` or `epoch_ms`")),
            Expr::Wildcard(_) | Expr::QualifiedWildcard(..) => {
                Err(ExpressionError::new(span, "`*` stands only in `count(*)`"))
            }
            other => Err(ExpressionError::new(span, format!("`{other}` is not available in expressions"))),
        }
    }

    fn column(&mut self, qualifier: Option<&str>, name: &str, span: Range<usize>) -> Result<Typed> {
        match self.scope.resolve(qualifier, name, span.clone()) {
            Ok((slot, column_type)) => {
                let shown = match qualifier {
                    Some(qualifier) => format!("{qualifier}.{name}"),
                    None => name.to_owned(),
                };
                Ok(Typed {
                    node: Node::Column(slot, shown),
                    data_type: Some(column_type.data_type),
                    nullable: column_type.nullable,
                    span,
                })
            }
            Err(error) => {
                // In a table's select the likely slip is a column of the input outside of an aggregate.
                if let Some((input, _)) = &self.aggregates
                    && input.resolve(qualifier, name, span.clone()).is_ok()
                {
                    return Err(ExpressionError::new(
                        span,
                        format!("column `{name}` is neither grouped nor inside an aggregate"),
                    )
                    .help(format!("add it to `group_by`, or take one value with `last({name})`")));
                }
                Err(error)
            }
        }
    }

    fn unary(&mut self, op: UnaryOperator, inner: &Expr, span: Range<usize>) -> Result<Typed> {
        // The smallest integer exists only with its sign.
        if op == UnaryOperator::Minus
            && let Expr::Value(value) = inner
            && let Value::Number(digits, _) = &value.value
            && digits == "9223372036854775808"
        {
            return Ok(constant(Datum::Int(i64::MIN), DataType::Int, span));
        }
        let operand = self.expression(inner)?;
        match op {
            UnaryOperator::Not => {
                let operand = boolean(operand, "`not`")?;
                Ok(negated_condition(operand, span))
            }
            UnaryOperator::Minus | UnaryOperator::Plus => {
                let data_type = operand.data_type.unwrap_or(DataType::Int);
                if !data_type.is_numeric() && data_type != DataType::Duration {
                    return Err(ExpressionError::new(span, format!("a {data_type} has no sign")));
                }
                if op == UnaryOperator::Plus {
                    return Ok(operand);
                }
                let nullable = operand.nullable;
                Ok(Typed {
                    node: Node::Negate(Box::new(operand)),
                    data_type: Some(data_type),
                    nullable,
                    span,
                })
            }
            other => Err(ExpressionError::new(span, format!("the operator `{other}` is not available"))),
        }
    }

    fn is_null(&mut self, inner: &Expr, negated: bool, span: Range<usize>) -> Result<Typed> {
        let operand = Box::new(self.expression(inner)?);
        Ok(Typed {
            node: Node::IsNull { negated, operand },
            data_type: Some(DataType::Bool),
            nullable: false,
            span,
        })
    }

    fn is_truth(&mut self, inner: &Expr, truth: bool, negated: bool, span: Range<usize>) -> Result<Typed> {
        let left = boolean(self.expression(inner)?, if truth { "`is true`" } else { "`is false`" })?;
        let right = constant(Datum::Bool(truth), DataType::Bool, span.clone());
        Ok(same(left, right, negated, span))
    }

    fn same(&mut self, left: &Expr, right: &Expr, negated: bool, span: Range<usize>) -> Result<Typed> {
        let mut sides = vec![self.expression(left)?, self.expression(right)?];
        unify(&mut sides, "compared").map_err(|error| at(error, &span))?;
        let right = sides.remove(1);
        let left = sides.remove(0);
        Ok(same(left, right, negated, span))
    }

    fn in_list(&mut self, expr: &Expr, list: &[Expr], negated: bool, span: Range<usize>) -> Result<Typed> {
        let mut parts = vec![self.expression(expr)?];
        for candidate in list {
            parts.push(self.expression(candidate)?);
        }
        unify(&mut parts, "compared")?;
        let nullable = parts.iter().any(|part| part.nullable);
        let operand = Box::new(parts.remove(0));
        Ok(Typed {
            node: Node::In { negated, operand, list: parts },
            data_type: Some(DataType::Bool),
            nullable,
            span,
        })
    }

    fn like(
        &mut self,
        negated: bool,
        expr: &Expr,
        pattern: &Expr,
        escape: Option<&Expr>,
        span: Range<usize>,
    ) -> Result<Typed> {
        let mut sides = [self.expression(expr)?, self.expression(pattern)?];
        for side in &mut sides {
            match side.data_type {
                None => side.data_type = Some(DataType::Text),
                Some(DataType::Text) => {}
                Some(other) => {
                    return Err(ExpressionError::new(
                        side.span.clone(),
                        format!("`like` compares text, this is {other}"),
                    )
                    .help("cast it: `cast(… as text)`"));
                }
            }
        }
        let escape = match escape {
            None => None,
            Some(Expr::Value(value)) => match &value.value {
                Value::SingleQuotedString(text) if text.chars().count() == 1 => text.chars().next(),
                _ => {
                    return Err(ExpressionError::new(
                        self.source.bytes(value.span),
                        "`escape` is one character",
                    ));
                }
            },
            Some(other) => {
                return Err(ExpressionError::new(self.source.span(other), "`escape` is one character"));
            }
        };
        let nullable = sides.iter().any(|side| side.nullable);
        let [operand, pattern] = sides.map(Box::new);
        Ok(Typed {
            node: Node::Like { negated, operand, pattern, escape },
            data_type: Some(DataType::Bool),
            nullable,
            span,
        })
    }

    fn case(
        &mut self,
        operand: Option<&Expr>,
        conditions: &[sql::CaseWhen],
        otherwise: Option<&Expr>,
        span: Range<usize>,
    ) -> Result<Typed> {
        let operand = operand.map(|operand| self.expression(operand)).transpose()?;
        let mut whens = Vec::new();
        let mut results = Vec::new();
        for branch in conditions {
            let when = self.expression(&branch.condition)?;
            let when_span = when.span.clone();
            whens.push(match &operand {
                Some(operand) => fold(compare_any(Comparison::Equal, operand.clone(), when, when_span)?)?,
                None => boolean(when, "`when`")?,
            });
            results.push(self.expression(&branch.result)?);
        }
        let has_else = otherwise.is_some();
        if let Some(otherwise) = otherwise {
            results.push(self.expression(otherwise)?);
        }
        let data_type = unify(&mut results, "results of one `case`")?;
        let nullable = !has_else || results.iter().any(|result| result.nullable);
        let otherwise = if has_else { results.pop().map(Box::new) } else { None };
        let branches = whens.into_iter().zip(results).collect();
        Ok(Typed { node: Node::Case { branches, otherwise }, data_type, nullable, span })
    }

    fn function(&mut self, function: &sql::Function, span: Range<usize>) -> Result<Typed> {
        let name = function.name.to_string();
        let lower = name.to_lowercase();
        let name_span = self.source.span(&function.name);
        if NON_DETERMINISTIC.contains(&lower.as_str()) {
            return Err(non_deterministic(&name, name_span));
        }
        if function.over.is_some() {
            return Err(ExpressionError::new(span, "`over (…)` is not available")
                .help("windows are declared on table nodes: `window = { tumbling = \"1m\", … }`"));
        }
        if !function.within_group.is_empty() || function.null_treatment.is_some() {
            return Err(ExpressionError::new(span, format!("this form of `{name}` is not available")));
        }
        if let Some(kind) = AggregateKind::find(&lower) {
            return self.aggregate(function, kind, &name, span);
        }
        if let Some(filter) = &function.filter {
            return Err(ExpressionError::new(
                self.source.span(filter.as_ref()),
                format!("`filter` belongs to aggregates; `{name}` is none"),
            ));
        }
        let (arguments, distinct) = self.arguments(function, &name, &span)?;
        if distinct {
            return Err(ExpressionError::new(
                span,
                format!("`distinct` belongs to aggregates; `{name}` is none"),
            ));
        }
        let mut args = Vec::new();
        for argument in arguments {
            args.push(self.expression(argument)?);
        }
        match lower.as_str() {
            "coalesce" | "ifnull" => {
                if args.len() < 2 {
                    return Err(ExpressionError::new(span, "`coalesce` takes two arguments or more"));
                }
                let data_type = unify(&mut args, "arguments of one `coalesce`")?;
                let nullable = args.iter().all(|arg| arg.nullable);
                Ok(Typed { node: Node::Coalesce(args), data_type, nullable, span })
            }
            "nullif" => {
                if args.len() != 2 {
                    return Err(ExpressionError::new(span, "`nullif` takes two arguments"));
                }
                let first = args[0].data_type;
                unify(&mut args, "arguments of one `nullif`")?;
                let second = Box::new(args.remove(1));
                let kept = Box::new(args.remove(0));
                let data_type = first.or(kept.data_type);
                Ok(Typed { node: Node::NullIf(kept, second), data_type, nullable: true, span })
            }
            _ if function::find(&lower).is_some() => call(&lower, args, span),
            _ => {
                let known = FUNCTIONS
                    .iter()
                    .map(|function| function.name)
                    .chain(SPECIAL_FORMS.iter().map(|form| form.0))
                    .chain(AggregateKind::NAMES.iter().copied());
                let error = ExpressionError::new(name_span, format!("unknown function `{name}`"));
                Err(match did_you_mean(&lower, known) {
                    Some(near) => error.help(format!("did you mean `{near}`?")),
                    None => error.help("docs/expressions.md lists the functions"),
                })
            }
        }
    }

    /// The arguments of a call, `*` as none; and whether `distinct` stands before them.
    fn arguments<'e>(
        &self,
        function: &'e sql::Function,
        name: &str,
        span: &Range<usize>,
    ) -> Result<(Vec<&'e Expr>, bool)> {
        let list = match &function.args {
            FunctionArguments::List(list) if list.clauses.is_empty() => list,
            FunctionArguments::None => {
                return Err(ExpressionError::new(span.clone(), format!("`{name}` needs parentheses")));
            }
            _ => {
                return Err(ExpressionError::new(
                    span.clone(),
                    format!("this form of `{name}` is not available"),
                ));
            }
        };
        let distinct = list.duplicate_treatment == Some(DuplicateTreatment::Distinct);
        let mut exprs = Vec::new();
        for argument in &list.args {
            match argument {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => exprs.push(expr),
                FunctionArg::Unnamed(FunctionArgExpr::Wildcard)
                    if AggregateKind::find(name) == Some(AggregateKind::Count) => {}
                _ => {
                    return Err(ExpressionError::new(
                        span.clone(),
                        format!("`{argument}` is not an argument that `{name}` takes"),
                    ));
                }
            }
        }
        Ok((exprs, distinct))
    }

    fn aggregate(
        &mut self,
        function: &sql::Function,
        kind: AggregateKind,
        name: &str,
        span: Range<usize>,
    ) -> Result<Typed> {
        let (arguments, distinct) = self.arguments(function, name, &span)?;
        if self.inside_aggregate {
            return Err(ExpressionError::new(span, "an aggregate cannot stand inside another")
                .help("make the inner one in a table, and read that table in the next"));
        }
        let Some((input, aggregates)) = self.aggregates.take() else {
            return Err(ExpressionError::new(
                span,
                format!("`{name}` is an aggregate; aggregates stand in a table's `select`"),
            ));
        };
        // Inside of an aggregate the input's columns are seen, and no further aggregate.
        let mut inner =
            Checker { source: self.source, scope: input, aggregates: None, inside_aggregate: true };
        let built = (|| {
            let filter = match &function.filter {
                Some(filter) => Some(boolean(inner.expression(filter)?, "`filter (where …)`")?),
                None => None,
            };
            let mut args = Vec::new();
            for argument in &arguments {
                args.push(settled(inner.expression(argument)?)?);
            }
            Aggregate::new(kind, distinct, args, filter, span.clone())
        })();
        let result = built.map(|aggregate| {
            let column_type = aggregate.column_type();
            let index = aggregates.iter().position(|other| other.same_as(&aggregate)).unwrap_or_else(|| {
                aggregates.push(aggregate);
                aggregates.len() - 1
            });
            Typed {
                node: Node::Column(Slot { side: Side::Right, index }, aggregates[index].to_string()),
                data_type: Some(column_type.data_type),
                nullable: column_type.nullable,
                span,
            }
        });
        self.aggregates = Some((input, aggregates));
        result
    }
}

fn at(mut error: ExpressionError, span: &Range<usize>) -> ExpressionError {
    if error.span.is_empty() {
        error.span = span.clone();
    }
    error
}

fn non_deterministic(name: &str, span: Range<usize>) -> ExpressionError {
    ExpressionError::new(
        span,
        format!("`{name}` gives another answer each time; a replay would give other results"),
    )
    .help("use the record's own time and ids, or `uuid5` for an id made from them")
}

fn constant(datum: Datum, data_type: DataType, span: Range<usize>) -> Typed {
    Typed { nullable: datum.is_null(), node: Node::Constant(datum), data_type: Some(data_type), span }
}

fn literal(value: &Value, span: Range<usize>) -> Result<Typed> {
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

fn interval_literal(interval: &sql::Interval, span: Range<usize>) -> Result<Typed> {
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

fn constant_of(target: DataType, text: &str, span: Range<usize>) -> Result<Typed> {
    match read_plain(target, text) {
        Some(datum) => Ok(constant(datum, target, span)),
        None => Err(not_a(target, text, span)),
    }
}

fn not_a(target: DataType, text: &str, span: Range<usize>) -> ExpressionError {
    let error = ExpressionError::new(span, format!("'{text}' is not a {target}"));
    match target {
        DataType::Timestamp => error.help("write it as RFC 3339 with an offset: '2026-11-23T10:00:00Z'"),
        DataType::Duration => error.help("write it with units ms, s, m, h, d: '1h30m'"),
        _ => error,
    }
}

/// Makes a bare NULL, or a constant text, be of the type that its surroundings want.
fn adapt(typed: &mut Typed, target: DataType) -> Result<()> {
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
fn unify(parts: &mut [Typed], what: &str) -> Result<Option<DataType>> {
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

fn boolean(mut typed: Typed, what: &str) -> Result<Typed> {
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

fn negated_condition(operand: Typed, span: Range<usize>) -> Typed {
    let nullable = operand.nullable;
    Typed { node: Node::Not(Box::new(operand)), data_type: Some(DataType::Bool), nullable, span }
}

fn join_conditions(
    make: fn(Box<Typed>, Box<Typed>) -> Node,
    left: Typed,
    right: Typed,
    span: Range<usize>,
) -> Typed {
    let nullable = left.nullable || right.nullable;
    Typed { node: make(Box::new(left), Box::new(right)), data_type: Some(DataType::Bool), nullable, span }
}

fn same(left: Typed, right: Typed, negated: bool, span: Range<usize>) -> Typed {
    Typed {
        node: Node::Same { negated, left: Box::new(left), right: Box::new(right) },
        data_type: Some(DataType::Bool),
        nullable: false,
        span,
    }
}

fn compare(op: Comparison, left: Typed, right: Typed, span: Range<usize>) -> Result<Typed> {
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
fn compare_any(op: Comparison, left: Typed, right: Typed, span: Range<usize>) -> Result<Typed> {
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

fn binary(op: &BinaryOperator, left: Typed, right: Typed, span: Range<usize>) -> Result<Typed> {
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

fn arithmetic(op: Arithmetic, mut left: Typed, mut right: Typed, span: Range<usize>) -> Result<Typed> {
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

fn concat(mut left: Typed, mut right: Typed, span: Range<usize>) -> Result<Typed> {
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

fn cast_target(data_type: &sql::DataType, span: &Range<usize>) -> Result<DataType> {
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

fn cast(operand: Typed, target: DataType, span: Range<usize>) -> Result<Typed> {
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

fn call(name: &str, mut args: Vec<Typed>, span: Range<usize>) -> Result<Typed> {
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
pub fn reference_signature(name: &str, signature: &function::Signature) -> String {
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

fn accepts(parameter: Parameter, arg: &Typed) -> bool {
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
fn fold(typed: Typed) -> Result<Typed> {
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
pub fn declared_type(text: &str) -> Result<ColumnType> {
    ColumnType::parse(text).ok_or_else(|| {
        let names: Vec<&str> = DataType::ALL.iter().map(|known| known.name()).collect();
        let error = ExpressionError::new(0..text.len(), format!("unknown type `{text}`"));
        match did_you_mean(text.trim_end_matches('?'), names.iter().copied()) {
            Some(near) => error.help(format!("did you mean `{near}`?")),
            None => error.help(format!("the types are {}; `?` after one allows null", names.join(", "))),
        }
    })
}
