//! The scalar functions as data: name, signatures, meaning. The checker, the compiler and the reference page read this one table.
//!
//! Functions written here get their arguments evaluated; those with their own rules of evaluation (`coalesce`, `nullif`, `cast`, `case`)
//! are nodes of the tree and stand in [`SPECIAL_FORMS`] for the reference. What must always hold: every function gives the same
//! answer for the same arguments, whenever and wherever it runs.

use std::{fmt, sync::Arc};

use jiff::{Unit, civil, tz::TimeZone};
use uuid::Uuid;

use super::{
    super::{
        json::RowWriter,
        value::{DataType, Datum},
    },
    EvalError, number,
};

/// What runs: arguments in, value out. A strict function never sees NULL.
pub(crate) type Body = Box<dyn Fn(&[Datum]) -> Result<Datum, EvalError> + Send + Sync>;

/// Makes the body. Constant arguments are known here, so that patterns, units and time zones are read once; the error names the
/// argument and says what is wrong with it.
pub(crate) type Bind = fn(&[Option<&Datum>]) -> Result<Body, (usize, String)>;

/// A parameter of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// A value of this type.
    Is(DataType),
    /// An integer or a double.
    Number,
    /// Text that must be written as a constant.
    ConstantText,
    /// A value of any type.
    Any,
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Parameter::Is(data_type) => write!(f, "{data_type}"),
            Parameter::Number => f.write_str("number"),
            Parameter::ConstantText => f.write_str("'text'"),
            Parameter::Any => f.write_str("any"),
        }
    }
}

/// The result of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultType {
    /// This type.
    Is(DataType),
    /// The type of the first argument.
    OfFirst,
}

/// One way to call a function.
#[derive(Debug)]
pub struct Signature {
    /// The parameters.
    pub parameters: &'static [Parameter],
    /// The result's type.
    pub result: ResultType,
    /// Whether the result may be NULL though no argument is.
    pub may_be_null: bool,
    /// Whether the parameters may be given several times over.
    pub repeats: bool,
    /// Whether a NULL argument makes the result NULL; else the body sees it.
    pub strict: bool,
    /// Makes the body.
    pub bind: Bind,
}

/// A function.
#[derive(Debug)]
pub struct Function {
    /// Its name, in lower case; files may write any case.
    pub name: &'static str,
    /// Other names that mean the same.
    pub aliases: &'static [&'static str],
    /// The ways to call it.
    pub signatures: &'static [Signature],
    /// What it does, for the reference.
    pub doc: &'static str,
    /// An expression and its value, held by a test.
    pub example: (&'static str, &'static str),
}

/// A function and the signature that a call chose.
#[derive(Clone, Copy, Debug)]
pub struct Overload {
    /// The function.
    pub function: &'static Function,
    /// The signature.
    pub signature: &'static Signature,
}

/// The function of that name, in any case.
pub(crate) fn find(name: &str) -> Option<&'static Function> {
    let lower = name.to_lowercase();
    FUNCTIONS.iter().find(|function| function.name == lower || function.aliases.contains(&lower.as_str()))
}

/// Names that give another answer each time; refused with the reason.
pub(crate) const NON_DETERMINISTIC: &[&str] = &[
    "now",
    "current_timestamp",
    "current_date",
    "current_time",
    "localtimestamp",
    "localtime",
    "random",
    "rand",
    "randomblob",
    "uuid",
    "uuid4",
    "uuid7",
    "gen_random_uuid",
    "newid",
    "today",
    "getdate",
    "clock_timestamp",
    "statement_timestamp",
    "transaction_timestamp",
    "sysdate",
    "unix_timestamp",
    "julianday",
    "datetime",
];

/// Forms with their own evaluation: name, how they are written, what they do, an example.
pub(crate) const SPECIAL_FORMS: &[(&str, &str, &str, (&str, &str))] = &[
    (
        "coalesce",
        "coalesce(T, T, …) -> T",
        "The first argument that is not NULL; later ones are not evaluated.",
        ("coalesce(null, 2, 3)", "2"),
    ),
    ("nullif", "nullif(T, T) -> T?", "NULL when both are equal, else the first.", ("nullif(3, 3)", "null")),
    (
        "case",
        "case [x] when … then … [else …] end",
        "The result of the first branch whose condition is true (or equals `x`); NULL without `else`.",
        ("case when 2 > 1 then 'yes' else 'no' end", "'yes'"),
    ),
    (
        "cast",
        "cast(x as type)",
        "Between numbers as SQLite: a double is cut towards zero, a text gives its longest numeric prefix. A text that is no moment, \
         UUID, duration or JSON gives NULL. Moments and durations cast to and from int as milliseconds. Anything casts to text.",
        ("cast('12 seats' as int)", "12"),
    ),
];

const TEXT: Parameter = Parameter::Is(DataType::Text);
const INT: Parameter = Parameter::Is(DataType::Int);
const TIMESTAMP: Parameter = Parameter::Is(DataType::Timestamp);
const DURATION: Parameter = Parameter::Is(DataType::Duration);
const JSON: Parameter = Parameter::Is(DataType::Json);
const UUID: Parameter = Parameter::Is(DataType::Uuid);

const fn plain(parameters: &'static [Parameter], result: DataType, bind: Bind) -> Signature {
    Signature {
        parameters,
        result: ResultType::Is(result),
        may_be_null: false,
        repeats: false,
        strict: true,
        bind,
    }
}

/// All scalar functions, in the order of the reference.
pub(crate) const FUNCTIONS: &[Function] = &[
    Function {
        name: "abs",
        aliases: &[],
        signatures: &[Signature {
            parameters: &[Parameter::Number],
            result: ResultType::OfFirst,
            may_be_null: false,
            repeats: false,
            strict: true,
            bind: |_| {
                Ok(Box::new(|args| match &args[0] {
                    Datum::Int(value) => {
                        value.checked_abs().map(Datum::Int).ok_or(EvalError::IntegerOverflow)
                    }
                    Datum::Float(value) => Ok(Datum::float(value.abs())),
                    _ => Ok(Datum::Null),
                }))
            },
        }],
        doc: "The value without its sign. The smallest integer has none: the record is bad.",
        example: ("abs(-3)", "3"),
    },
    Function {
        name: "round",
        aliases: &[],
        signatures: &[
            plain(&[Parameter::Number], DataType::Float, |_| {
                Ok(Box::new(|args| Ok(round(&args[0], &Datum::Int(0)))))
            }),
            plain(&[Parameter::Number, INT], DataType::Float, |_| {
                Ok(Box::new(|args| Ok(round(&args[0], &args[1]))))
            }),
        ],
        doc: "Rounds half away from zero to that many digits after the point (0 to 30); always a double.",
        example: ("round(2.345, 1)", "2.3"),
    },
    Function {
        name: "length",
        aliases: &[],
        signatures: &[plain(&[TEXT], DataType::Int, |_| {
            Ok(Box::new(|args| Ok(text(&args[0], |text| Datum::Int(text.chars().count() as i64)))))
        })],
        doc: "Characters of the text.",
        example: ("length('seat')", "4"),
    },
    Function {
        name: "lower",
        aliases: &[],
        signatures: &[plain(&[TEXT], DataType::Text, |_| {
            Ok(Box::new(|args| Ok(text(&args[0], |text| Datum::text(text.to_ascii_lowercase())))))
        })],
        doc: "ASCII letters in lower case; others stay, as in SQLite.",
        example: ("lower('ÀB')", "'Àb'"),
    },
    Function {
        name: "upper",
        aliases: &[],
        signatures: &[plain(&[TEXT], DataType::Text, |_| {
            Ok(Box::new(|args| Ok(text(&args[0], |text| Datum::text(text.to_ascii_uppercase())))))
        })],
        doc: "ASCII letters in upper case; others stay, as in SQLite.",
        example: ("upper('ab')", "'AB'"),
    },
    Function {
        name: "substr",
        aliases: &["substring"],
        signatures: &[
            plain(&[TEXT, INT], DataType::Text, |_| {
                Ok(Box::new(|args| Ok(text(&args[0], |text| substr(text, &args[1], None)))))
            }),
            plain(&[TEXT, INT, INT], DataType::Text, |_| {
                Ok(Box::new(|args| Ok(text(&args[0], |text| substr(text, &args[1], Some(&args[2]))))))
            }),
        ],
        doc: "Part of a text from a position, 1 the first character, negative counted from the end; a negative length takes what stands \
              before the position.",
        example: ("substr('record', 2, 3)", "'eco'"),
    },
    Function {
        name: "trim",
        aliases: &[],
        signatures: &[plain(&[TEXT], DataType::Text, |_| {
            Ok(Box::new(|args| Ok(text(&args[0], |text| Datum::text(text.trim_matches(' '))))))
        })],
        doc: "The text without spaces at its ends.",
        example: ("trim('  x ')", "'x'"),
    },
    Function {
        name: "replace",
        aliases: &[],
        signatures: &[plain(&[TEXT, TEXT, TEXT], DataType::Text, |_| {
            Ok(Box::new(|args| {
                Ok(text(&args[0], |whole| {
                    text(&args[1], |from| {
                        text(&args[2], |to| {
                            if from.is_empty() {
                                Datum::text(whole)
                            } else {
                                Datum::text(whole.replace(from, to))
                            }
                        })
                    })
                }))
            }))
        })],
        doc: "Every occurrence of the second text replaced by the third.",
        example: ("replace('a-b-c', '-', '')", "'abc'"),
    },
    Function {
        name: "instr",
        aliases: &[],
        signatures: &[plain(&[TEXT, TEXT], DataType::Int, |_| {
            Ok(Box::new(|args| {
                Ok(text(&args[0], |whole| {
                    text(&args[1], |part| {
                        Datum::Int(whole.find(part).map_or(0, |at| whole[..at].chars().count() as i64 + 1))
                    })
                }))
            }))
        })],
        doc: "The position of the second text in the first, 1 the first character; 0 when it is not in it.",
        example: ("instr('record', 'o')", "4"),
    },
    Function {
        name: "date_trunc",
        aliases: &[],
        signatures: &[
            plain(&[Parameter::ConstantText, TIMESTAMP], DataType::Timestamp, |constants| {
                date_trunc(constants, None)
            }),
            plain(
                &[Parameter::ConstantText, TIMESTAMP, Parameter::ConstantText],
                DataType::Timestamp,
                |constants| date_trunc(constants, Some(2)),
            ),
        ],
        doc: "The start of the second, minute, hour, day, week (Monday), month or year, in UTC or in the zone given.",
        example: (
            "date_trunc('day', timestamp '2026-11-23T01:02:03Z', 'Asia/Seoul')",
            "timestamp '2026-11-22T15:00:00.000Z'",
        ),
    },
    Function {
        name: "epoch",
        aliases: &[],
        signatures: &[plain(&[TIMESTAMP], DataType::Int, |_| {
            Ok(Box::new(|args| {
                Ok(args[0].as_timestamp().map_or(Datum::Null, |ms| Datum::Int(ms.div_euclid(1_000))))
            }))
        })],
        doc: "Whole seconds since 1970-01-01T00:00:00Z.",
        example: ("epoch(timestamp '1970-01-01T00:01:00.999Z')", "60"),
    },
    Function {
        name: "epoch_ms",
        aliases: &[],
        signatures: &[
            plain(&[TIMESTAMP], DataType::Int, |_| {
                Ok(Box::new(|args| Ok(args[0].as_timestamp().map_or(Datum::Null, Datum::Int))))
            }),
            plain(&[DURATION], DataType::Int, |_| {
                Ok(Box::new(|args| {
                    Ok(if let Datum::Duration(ms) = args[0] { Datum::Int(ms) } else { Datum::Null })
                }))
            }),
        ],
        doc: "Milliseconds since 1970-01-01T00:00:00Z, or of a duration.",
        example: ("epoch_ms(interval '1m')", "60000"),
    },
    Function {
        name: "uuid5",
        aliases: &[],
        signatures: &[
            plain(&[UUID, TEXT], DataType::Uuid, |_| {
                Ok(Box::new(|args| {
                    Ok(text(&args[1], |name| match args[0] {
                        Datum::Uuid(space) => Datum::Uuid(Uuid::new_v5(&space, name.as_bytes())),
                        _ => Datum::Null,
                    }))
                }))
            }),
            plain(&[TEXT, TEXT], DataType::Uuid, |_| {
                Ok(Box::new(|args| {
                    Ok(text(&args[0], |space| {
                        text(&args[1], |name| {
                            let space = Uuid::parse_str(space)
                                .unwrap_or_else(|_| Uuid::new_v5(&Uuid::nil(), space.as_bytes()));
                            Datum::Uuid(Uuid::new_v5(&space, name.as_bytes()))
                        })
                    }))
                }))
            }),
        ],
        doc: "The name-based UUID (RFC 9562, version 5) of the second text in the namespace of the first. A first text that is no UUID names \
              a namespace under the nil UUID. The same input gives the same id after any replay.",
        example: (
            "uuid5('6ba7b810-9dad-11d1-80b4-00c04fd430c8', 'python.org')",
            "cast('886313e1-3b8a-5372-9b90-0c9aee199e5d' as uuid)",
        ),
    },
    Function {
        name: "json_object",
        aliases: &[],
        signatures: &[Signature {
            parameters: &[Parameter::ConstantText, Parameter::Any],
            result: ResultType::Is(DataType::Json),
            may_be_null: false,
            repeats: true,
            strict: false,
            bind: |constants| {
                let names: Vec<&str> = constants
                    .iter()
                    .step_by(2)
                    .map(|name| if let Some(Datum::Text(name)) = name { name.as_ref() } else { "" })
                    .collect();
                let writer = RowWriter::new(names);
                Ok(Box::new(move |args| {
                    let values: Vec<Datum> = args.iter().skip(1).step_by(2).cloned().collect();
                    let mut out = Vec::new();
                    writer.write(&values, &mut out);
                    // Only UTF-8 is written.
                    Ok(Datum::Json(String::from_utf8(out).unwrap_or_default().into()))
                }))
            },
        }],
        doc: "A JSON object of names and values; NULL becomes JSON's null.",
        example: (
            "json_object('seat', 7, 'name', 'A \"1\"')",
            "cast('{\"seat\":7,\"name\":\"A \\\"1\\\"\"}' as json)",
        ),
    },
    Function {
        name: "json_get",
        aliases: &["json_extract"],
        signatures: &[
            Signature {
                parameters: &[JSON, TEXT],
                result: ResultType::Is(DataType::Json),
                may_be_null: true,
                repeats: false,
                strict: true,
                bind: |_| {
                    Ok(Box::new(|args| Ok(json_part(args).map_or(Datum::Null, |part| json_datum(&part)))))
                },
            },
            Signature {
                parameters: &[JSON, INT],
                result: ResultType::Is(DataType::Json),
                may_be_null: true,
                repeats: false,
                strict: true,
                bind: |_| {
                    Ok(Box::new(|args| Ok(json_part(args).map_or(Datum::Null, |part| json_datum(&part)))))
                },
            },
        ],
        doc: "The part of a JSON document at a member name, an index, or a path (`'$.a.b[0]'`); also written `doc -> 'a'`. NULL when \
              there is none.",
        example: ("cast('{\"a\":[1,2]}' as json) -> '$.a[1]'", "cast('2' as json)"),
    },
    Function {
        name: "json_get_text",
        aliases: &[],
        signatures: &[
            Signature {
                parameters: &[JSON, TEXT],
                result: ResultType::Is(DataType::Text),
                may_be_null: true,
                repeats: false,
                strict: true,
                bind: |_| Ok(Box::new(|args| Ok(json_part(args).map_or(Datum::Null, json_text)))),
            },
            Signature {
                parameters: &[JSON, INT],
                result: ResultType::Is(DataType::Text),
                may_be_null: true,
                repeats: false,
                strict: true,
                bind: |_| Ok(Box::new(|args| Ok(json_part(args).map_or(Datum::Null, json_text)))),
            },
        ],
        doc: "Like `json_get`, as text: strings without their quotes, JSON's null as NULL; also written `doc ->> 'a'`. Cast it to the type \
              needed.",
        example: ("cast('{\"city\":\"Seoul\"}' as json) ->> 'city'", "'Seoul'"),
    },
];

fn text(datum: &Datum, f: impl FnOnce(&str) -> Datum) -> Datum {
    if let Datum::Text(text) = datum { f(text) } else { Datum::Null }
}

fn round(value: &Datum, digits: &Datum) -> Datum {
    match (number::real(value), number::integer(digits)) {
        (Some(value), Some(digits)) => Datum::float(number::round(value, digits)),
        _ => Datum::Null,
    }
}

/// SQLite's `substr`, with its rules for zero and negative positions and lengths.
fn substr(text: &str, from: &Datum, length: Option<&Datum>) -> Datum {
    let (Some(mut from), Some(mut length)) =
        (number::integer(from), length.map_or(Some(i64::from(i32::MAX)), number::integer))
    else {
        return Datum::Null;
    };
    if from < 0 {
        from = from.saturating_add(text.chars().count() as i64);
        if from < 0 {
            length = if length < 0 { 0 } else { length.saturating_add(from) };
            from = 0;
        }
    } else if from > 0 {
        from -= 1;
    } else if length > 0 {
        length -= 1;
    }
    if length < 0 {
        length = if length < -from { from } else { -length };
        from -= length;
    }
    let skip = usize::try_from(from).unwrap_or(usize::MAX);
    let take = usize::try_from(length).unwrap_or(0);
    Datum::Text(text.chars().skip(skip).take(take).collect::<String>().into())
}

/// A unit to truncate to.
#[derive(Clone, Copy)]
enum TruncateTo {
    Fixed(i64),
    Day,
    Week,
    Month,
    Year,
}

const UNITS: &str = "second, minute, hour, day, week, month or year";

fn date_trunc(constants: &[Option<&Datum>], zone_at: Option<usize>) -> Result<Body, (usize, String)> {
    let unit = match constants[0] {
        Some(Datum::Text(unit)) => match unit.to_ascii_lowercase().as_str() {
            "second" => TruncateTo::Fixed(1_000),
            "minute" => TruncateTo::Fixed(60_000),
            "hour" => TruncateTo::Fixed(3_600_000),
            "day" => TruncateTo::Day,
            "week" => TruncateTo::Week,
            "month" => TruncateTo::Month,
            "year" => TruncateTo::Year,
            other => return Err((0, format!("`{other}` is not a unit; use {UNITS}"))),
        },
        _ => return Err((0, format!("the unit is a constant: {UNITS}"))),
    };
    let zone = match zone_at.and_then(|at| constants[at]) {
        Some(Datum::Text(name)) => Some(
            TimeZone::get(name)
                .map_err(|_| (2, format!("`{name}` is not a time zone of the IANA database")))?,
        ),
        _ => None,
    };
    Ok(Box::new(move |args| {
        let Some(ms) = args[1].as_timestamp() else { return Ok(Datum::Null) };
        let truncated = match (unit, &zone) {
            (TruncateTo::Fixed(size @ ..60_001), _) | (TruncateTo::Fixed(size), None) => {
                Some(ms - ms.rem_euclid(size))
            }
            (TruncateTo::Day, None) => Some(ms - ms.rem_euclid(86_400_000)),
            (unit, zone) => truncate_zoned(ms, unit, zone.as_ref().unwrap_or(&TimeZone::UTC)),
        };
        Ok(truncated.map_or(Datum::Null, Datum::Timestamp))
    }))
}

fn truncate_zoned(ms: i64, unit: TruncateTo, zone: &TimeZone) -> Option<i64> {
    let local = jiff::Timestamp::from_millisecond(ms).ok()?.to_zoned(zone.clone());
    let date = local.date();
    let start = match unit {
        // The hour of the offset in force, so that the repeated hour of autumn stays two hours.
        TruncateTo::Fixed(_) => {
            return Some(
                local
                    .round(jiff::ZonedRound::new().smallest(Unit::Hour).mode(jiff::RoundMode::Floor))
                    .ok()?
                    .timestamp()
                    .as_millisecond(),
            );
        }
        TruncateTo::Day => date,
        TruncateTo::Week => {
            let days = i64::from(date.weekday().to_monday_zero_offset());
            date.checked_sub(jiff::Span::new().days(days)).ok()?
        }
        TruncateTo::Month => date.first_of_month(),
        TruncateTo::Year => civil::date(date.year(), 1, 1),
    };
    Some(start.to_zoned(zone.clone()).ok()?.timestamp().as_millisecond())
}

/// The part of a document that the second argument names.
fn json_part(args: &[Datum]) -> Option<serde_json::Value> {
    let Datum::Json(raw) = &args[0] else { return None };
    let mut value: serde_json::Value = serde_json::from_str(raw).ok()?;
    match &args[1] {
        Datum::Text(path) => match path.strip_prefix('$') {
            Some(path) => {
                for step in path_steps(path)? {
                    value = take_step(value, step)?;
                }
                Some(value)
            }
            None => take_step(value, Step::Member(path)),
        },
        other => take_step(value, Step::Index(number::integer(other)?)),
    }
}

enum Step<'a> {
    Member(&'a str),
    Index(i64),
}

fn take_step(value: serde_json::Value, step: Step<'_>) -> Option<serde_json::Value> {
    match (value, step) {
        (serde_json::Value::Object(mut map), Step::Member(name)) => map.remove(name),
        (serde_json::Value::Array(mut list), Step::Index(index)) => {
            let at = if index < 0 { index + list.len() as i64 } else { index };
            let at = usize::try_from(at).ok().filter(|at| *at < list.len())?;
            Some(list.swap_remove(at))
        }
        _ => None,
    }
}

/// The steps of `.a.b[0]`; `None` when it is no path.
fn path_steps(path: &str) -> Option<Vec<Step<'_>>> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let (index, after) = after.split_once(']')?;
            steps.push(Step::Index(index.parse().ok()?));
            rest = after;
        } else {
            let after = rest.strip_prefix('.')?;
            let end = after.find(['.', '[']).unwrap_or(after.len());
            steps.push(Step::Member(&after[..end]));
            rest = &after[end..];
        }
    }
    Some(steps)
}

fn json_datum(value: &serde_json::Value) -> Datum {
    Datum::Json(Arc::from(value.to_string()))
}

fn json_text(value: serde_json::Value) -> Datum {
    match value {
        serde_json::Value::Null => Datum::Null,
        serde_json::Value::String(text) => Datum::Text(text.into()),
        other => Datum::Text(other.to_string().into()),
    }
}
