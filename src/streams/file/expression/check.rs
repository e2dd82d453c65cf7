//! Names to slots and types to every node: the only door from text to a [`Typed`] expression.
//!
//! Order: parse, resolve names, check types bottom-up (a constant text becomes a moment, UUID or duration where the other side is
//! one), fold constants, and in a table's `select` take the aggregates out. What must always hold: what leaves here has a type, has no
//! unknown name, and does nothing that another run would do differently.

use std::ops::Range;

use sqlparser::ast::{
    self as sql, DuplicateTreatment, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, UnaryOperator,
    Value,
};

use super::{
    super::{
        suggest::did_you_mean,
        value::{DataType, Datum},
    },
    ExpressionError, Result,
    aggregate::{Aggregate, AggregateKind},
    function::{self, FUNCTIONS, NON_DETERMINISTIC, SPECIAL_FORMS},
    parse::{Source, parse},
    rules::{
        at, binary, boolean, call, cast, cast_target, compare, compare_any, constant, constant_of, fold,
        interval_literal, join_conditions, literal, negated_condition, non_deterministic, same, unify,
    },
    scope::{Scope, Side, Slot},
    typed::{Comparison, Node, Typed},
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
