//! The claim "as SQLite has it", tested: typed random expressions and rows, evaluated here and in SQLite, compared.
//!
//! `SLUICE_EXPRESSION_CASES` sets how many expressions (default 3000), `SLUICE_SEED` repeats a run; a failure prints both. Each expression is
//! evaluated on four rows of awkward values. What must hold: the same value and the same kind of number; never NULL where the checker
//! said never; an error only where SQLite has one.

use rusqlite::{Connection, types::Value};

use super::{
    super::value::{Column, ColumnType, DataType, Datum},
    Aggregate, Expression, Scope, check, check_select,
};

/// A generator of random choices that a seed repeats (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn pick<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.roll(list.len() as u64) as usize]
    }
}

const INTS: [&str; 12] = [
    "0",
    "1",
    "2",
    "-1",
    "3",
    "7",
    "10",
    "9223372036854775807",
    "-9223372036854775808",
    "4611686018427387904",
    "4503599627370497",
    "30",
];
const FLOATS: [&str; 14] = [
    "0.0",
    "1.0",
    "-1.5",
    "2.5",
    "0.1",
    "1e300",
    "-1e300",
    "9223372036854775808.0",
    "1e-7",
    "123456.789",
    "2.675",
    "0.5",
    "1e17",
    "3e-320",
];
const TEXTS: [&str; 16] = [
    "",
    "a",
    "A",
    "abc",
    "aBc",
    "%",
    "_",
    "a%",
    "é",
    "É中",
    "12",
    "-3.5e2x",
    " 7 ",
    "it's",
    "9223372036854775808",
    "a_c",
];
const PATTERNS: [&str; 14] =
    ["%", "_", "a%", "%c", "_b_", "%b%", "ABC", "a\\%", "%é%", "", "__", "%_%", "a%c", "\\"];

struct Column_ {
    name: &'static str,
    data_type: DataType,
    nullable: bool,
}

const COLUMNS: [Column_; 8] = [
    Column_ { name: "i1", data_type: DataType::Int, nullable: true },
    Column_ { name: "i2", data_type: DataType::Int, nullable: false },
    Column_ { name: "f1", data_type: DataType::Float, nullable: true },
    Column_ { name: "f2", data_type: DataType::Float, nullable: false },
    Column_ { name: "t1", data_type: DataType::Text, nullable: true },
    Column_ { name: "t2", data_type: DataType::Text, nullable: false },
    Column_ { name: "b1", data_type: DataType::Bool, nullable: true },
    Column_ { name: "b2", data_type: DataType::Bool, nullable: false },
];

fn columns() -> Vec<Column> {
    COLUMNS
        .iter()
        .map(|c| Column::new(c.name, ColumnType { data_type: c.data_type, nullable: c.nullable }))
        .collect()
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn literal(dice: &mut Dice, data_type: DataType) -> String {
    match data_type {
        DataType::Int => dice.pick(&INTS).to_owned(),
        DataType::Float => dice.pick(&FLOATS).to_owned(),
        DataType::Text => quoted(dice.pick(&TEXTS)),
        _ => dice.pick(&["true", "false"]).to_owned(),
    }
}

fn number(dice: &mut Dice) -> DataType {
    if dice.roll(3) == 0 { DataType::Float } else { DataType::Int }
}

fn any_type(dice: &mut Dice) -> DataType {
    [DataType::Int, DataType::Float, DataType::Text, DataType::Bool][dice.roll(4) as usize]
}

/// A random expression of the type, as text that both sides read.
fn expression(dice: &mut Dice, data_type: DataType, depth: u32) -> String {
    if depth == 0 || dice.roll(6) == 0 {
        if dice.roll(3) > 0 {
            let fitting: Vec<&str> =
                COLUMNS.iter().filter(|c| c.data_type == data_type).map(|c| c.name).collect();
            return dice.pick(&fitting).to_owned();
        }
        return literal(dice, data_type);
    }
    let d = depth - 1;
    let maybe_null = |dice: &mut Dice, text: String| if dice.roll(8) == 0 { "null".to_owned() } else { text };
    match dice.roll(5) {
        0 => {
            let result = expression(dice, data_type, d);
            let (when, otherwise) = (expression(dice, DataType::Bool, d), expression(dice, data_type, d));
            let otherwise = maybe_null(dice, otherwise);
            return match dice.roll(3) {
                0 => format!("case when {when} then {result} end"),
                1 => format!("case when {when} then {result} else {otherwise} end"),
                _ => {
                    let of = any_type(dice);
                    let (x, y) = (expression(dice, of, d), expression(dice, of, d));
                    format!("case {x} when {y} then {result} else {otherwise} end")
                }
            };
        }
        1 => {
            let (a, b) = (expression(dice, data_type, d), expression(dice, data_type, d));
            let b = maybe_null(dice, b);
            return if dice.roll(2) == 0 {
                format!("coalesce({a}, {b})")
            } else {
                format!("nullif({a}, {b})")
            };
        }
        _ => {}
    }
    match data_type {
        DataType::Int => match dice.roll(9) {
            0..=3 => {
                let op = dice.pick(&["+", "-", "*", "/", "%"]);
                format!(
                    "({} {op} {})",
                    expression(dice, DataType::Int, d),
                    expression(dice, DataType::Int, d)
                )
            }
            4 => format!("(- {})", expression(dice, DataType::Int, d)),
            5 => format!("abs({})", expression(dice, DataType::Int, d)),
            6 => format!("length({})", expression(dice, DataType::Text, d)),
            7 => format!(
                "instr({}, {})",
                expression(dice, DataType::Text, d),
                expression(dice, DataType::Text, d)
            ),
            _ => {
                let of = any_type(dice);
                format!("cast({} as int)", expression(dice, of, d))
            }
        },
        DataType::Float => match dice.roll(8) {
            0..=3 => {
                let op = dice.pick(&["+", "-", "*", "/", "%"]);
                let of = number(dice);
                format!("({} {op} {})", expression(dice, of, d), expression(dice, DataType::Float, d))
            }
            4 => format!("(- {})", expression(dice, DataType::Float, d)),
            5 => {
                let of = number(dice);
                format!("round({}, {})", expression(dice, of, d), expression(dice, DataType::Int, d))
            }
            6 => format!("round({})", expression(dice, DataType::Float, d)),
            _ => {
                let of = [DataType::Int, DataType::Text][dice.roll(2) as usize];
                format!("cast({} as float)", expression(dice, of, d))
            }
        },
        DataType::Text => match dice.roll(8) {
            0 | 1 => {
                let of = [DataType::Text, DataType::Int, DataType::Float][dice.roll(3) as usize];
                format!("({} || {})", expression(dice, DataType::Text, d), expression(dice, of, d))
            }
            2 => format!("lower({})", expression(dice, DataType::Text, d)),
            3 => format!("upper({})", expression(dice, DataType::Text, d)),
            4 => {
                format!(
                    "substr({}, {})",
                    expression(dice, DataType::Text, d),
                    expression(dice, DataType::Int, d)
                )
            }
            5 => format!(
                "substr({}, {}, {})",
                expression(dice, DataType::Text, d),
                expression(dice, DataType::Int, d),
                expression(dice, DataType::Int, d)
            ),
            6 => format!(
                // With an empty second text SQLite does not look at the third, even when that is NULL; here NULL spreads always.
                "replace({}, {}, {})",
                expression(dice, DataType::Text, d),
                expression(dice, DataType::Text, d),
                literal(dice, DataType::Text)
            ),
            _ => {
                let of = number(dice);
                format!("cast({} as text)", expression(dice, of, d))
            }
        },
        _ => condition(dice, d),
    }
}

fn condition(dice: &mut Dice, d: u32) -> String {
    let not = dice.pick(&["", "not "]);
    match dice.roll(9) {
        0 | 1 => {
            let of = any_type(dice);
            // Numbers of both kinds compare with each other.
            let other = if of == DataType::Int { number(dice) } else { of };
            let op = dice.pick(&["=", "<>", "<", "<=", ">", ">="]);
            format!("({} {op} {})", expression(dice, of, d), expression(dice, other, d))
        }
        2 => format!("({} and {})", expression(dice, DataType::Bool, d), expression(dice, DataType::Bool, d)),
        3 => format!("({} or {})", expression(dice, DataType::Bool, d), expression(dice, DataType::Bool, d)),
        4 => format!("(not {})", expression(dice, DataType::Bool, d)),
        5 => {
            let of = any_type(dice);
            match dice.roll(3) {
                0 => format!("({} is {not}null)", expression(dice, of, d)),
                1 => {
                    format!("({} is {not}distinct from {})", expression(dice, of, d), expression(dice, of, d))
                }
                _ => format!(
                    "({} is {not}{})",
                    expression(dice, DataType::Bool, d),
                    dice.pick(&["true", "false"])
                ),
            }
        }
        6 => {
            let of = any_type(dice);
            let list: Vec<String> = (0..=dice.roll(3)).map(|_| expression(dice, of, d)).collect();
            format!("({} {not}in ({}))", expression(dice, of, d), list.join(", "))
        }
        7 => {
            let of = any_type(dice);
            format!(
                "({} {not}between {} and {})",
                expression(dice, of, d),
                expression(dice, of, d),
                expression(dice, of, d)
            )
        }
        _ => {
            let pattern = if dice.roll(3) > 0 {
                quoted(dice.pick(&PATTERNS))
            } else {
                expression(dice, DataType::Text, d)
            };
            let escape = dice.pick(&["", "", " escape '\\'", " escape '%'"]);
            format!("({} {not}like {pattern}{escape})", expression(dice, DataType::Text, d))
        }
    }
}

fn datum(dice: &mut Dice, data_type: DataType, nullable: bool) -> Datum {
    if nullable && dice.roll(4) == 0 {
        return Datum::Null;
    }
    match data_type {
        DataType::Int => match dice.roll(3) {
            0 => Datum::Int(dice.roll(u64::MAX) as i64),
            _ => Datum::Int(dice.pick(&INTS).parse().unwrap()),
        },
        DataType::Float => match dice.roll(4) {
            0 => Datum::float(f64::from_bits(dice.roll(u64::MAX))),
            1 => Datum::float(dice.roll(1_000_000) as f64 / 1_000.0),
            _ => Datum::float(dice.pick(&FLOATS).parse().unwrap()),
        },
        DataType::Text => match dice.roll(3) {
            0 => Datum::text((0..dice.roll(6)).map(|_| dice.pick(&TEXTS)).collect::<String>()),
            1 => Datum::text(format!("{}.{}e{}", dice.roll(99), dice.roll(99), dice.roll(40))),
            _ => Datum::text(dice.pick(&TEXTS)),
        },
        _ => Datum::Bool(dice.roll(2) == 0),
    }
}

fn random_row(dice: &mut Dice) -> Vec<Datum> {
    COLUMNS
        .iter()
        .map(|c| {
            // A random pattern of bits may be no number, which is NULL.
            let value = datum(dice, c.data_type, c.nullable);
            if value.is_null() && !c.nullable { Datum::float(0.25) } else { value }
        })
        .collect()
}

fn to_sqlite(datum: &Datum) -> Value {
    match datum {
        Datum::Int(value) => Value::Integer(*value),
        Datum::Float(value) => Value::Real(*value),
        Datum::Text(text) => Value::Text(text.to_string()),
        Datum::Bool(value) => Value::Integer(i64::from(*value)),
        _ => Value::Null,
    }
}

/// Whether our value is SQLite's, kind of number included.
fn agrees(ours: &Datum, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Datum::Float(a), Value::Real(b)) => a == b,
        (ours, theirs) => to_sqlite(ours) == *theirs,
    }
}

fn environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library's hasher is seeded by the operating system.
    let random = || std::collections::hash_map::RandomState::new().build_hasher().finish();
    std::env::var("SLUICE_SEED").ok().and_then(|value| value.parse().ok()).unwrap_or_else(random)
}

#[test]
fn expressions_answer_as_sqlite_does() {
    let cases = environment("SLUICE_EXPRESSION_CASES", 3_000);
    let seed = seed();
    let mut dice = Dice(seed);
    let database = Connection::open_in_memory().unwrap();
    let scope = Scope::of(None, &columns());
    let names: Vec<&str> = COLUMNS.iter().map(|c| c.name).collect();
    let (mut compared, mut nulls, mut failed) = (0_u64, 0_u64, 0_u64);
    for case in 0..cases {
        let data_type = any_type(&mut dice);
        let text = expression(&mut dice, data_type, 1 + (case % 4) as u32);
        let place = format!("{text}\nSLUICE_SEED={seed}, case {case}");
        let compiled = match check(&text, &scope) {
            Ok(typed) => Expression::new(typed),
            // Folding a constant part that overflows refuses the expression; SQLite must fail on it, too, unless it never gets there.
            Err(error) if error.message.contains("integer overflow") => continue,
            Err(error) => panic!("{error}\n{place}"),
        };
        let typed = compiled.typed();
        assert!(
            typed.data_type == Some(data_type),
            "typed {:?}, meant {data_type}: {place}",
            typed.data_type
        );
        let sql = format!(
            "with r({}) as (select ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) select {text} from r",
            names.join(", ")
        );
        let mut statement = database.prepare(&sql).unwrap_or_else(|error| panic!("{error}: {place}"));
        for _ in 0..4 {
            let row = random_row(&mut dice);
            let ours = compiled.evaluate(&row, &[]);
            let theirs: Result<Value, _> = statement
                .query_row(rusqlite::params_from_iter(row.iter().map(to_sqlite)), |found| found.get(0));
            match (ours, theirs) {
                (Ok(ours), Ok(theirs)) => {
                    assert!(agrees(&ours, &theirs), "{ours:?} here, {theirs:?} in SQLite\n{row:?}\n{place}");
                    assert!(typed.nullable || !ours.is_null(), "said never NULL\n{row:?}\n{place}");
                    let fits = match (ours.data_type(), data_type) {
                        (None, _)
                        | (Some(DataType::Float), DataType::Int)
                        | (Some(DataType::Int), DataType::Float) => true,
                        (Some(own), wanted) => own == wanted,
                    };
                    assert!(fits, "{ours:?} is not {data_type}\n{row:?}\n{place}");
                    compared += 1;
                    nulls += u64::from(ours.is_null());
                }
                // SQLite evaluates both sides of `and`; here the second is often not needed, so fewer rows fail.
                (_, Err(error)) => {
                    assert!(error.to_string().contains("integer overflow"), "{error}: {place}");
                    failed += 1;
                }
                (Err(error), Ok(theirs)) => panic!("{error} here, {theirs:?} in SQLite\n{row:?}\n{place}"),
            }
        }
    }
    println!(
        "{cases} expressions, seed {seed}: {compared} values compared, {nulls} NULL, {failed} failed in SQLite"
    );
    assert!(compared > cases * 3, "too little was compared: {compared}");
    assert!(
        nulls * 20 > compared && nulls * 2 < compared,
        "too few or too many NULLs to mean much: {nulls} of {compared}"
    );
}

#[test]
fn aggregates_answer_as_sqlite_does() {
    let cases = environment("SLUICE_EXPRESSION_CASES", 3_000) / 10;
    let seed = seed();
    let mut dice = Dice(seed);
    let database = Connection::open_in_memory().unwrap();
    let names: Vec<&str> = COLUMNS.iter().map(|c| c.name).collect();
    database.execute_batch(&format!("create table r({})", names.join(", "))).unwrap();
    let scope = Scope::of(None, &columns());
    for case in 0..cases {
        let of = any_type(&mut dice);
        let d = (case % 3) as u32;
        let inner = match dice.roll(7) {
            0 => "count(*)".to_owned(),
            1 => format!("count({})", expression(&mut dice, of, d)),
            2 => format!("count(distinct {})", expression(&mut dice, of, d)),
            3 => format!("min({})", expression(&mut dice, of, d)),
            4 => format!("max({})", expression(&mut dice, of, d)),
            _ => {
                let of = number(&mut dice);
                format!("{}({})", dice.pick(&["sum", "avg"]), expression(&mut dice, of, d))
            }
        };
        let text = if dice.roll(3) == 0 {
            format!("{inner} filter (where {})", expression(&mut dice, DataType::Bool, d))
        } else {
            inner
        };
        let place = format!("{text}\nSLUICE_SEED={seed}, case {case}");
        let mut list: Vec<Aggregate> = Vec::new();
        match check_select(&text, &Scope::default(), &scope, &mut list) {
            Ok(_) => {}
            Err(error) if error.message.contains("integer overflow") => continue,
            Err(error) => panic!("{error}\n{place}"),
        }
        let aggregate = &list[0];
        database.execute("delete from r", []).unwrap();
        let mut insert =
            database.prepare_cached("insert into r values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)").unwrap();
        let mut state = Ok(aggregate.init());
        let mut rows = Vec::new();
        for time in 0..dice.roll(8) as i64 {
            let row = random_row(&mut dice);
            insert.execute(rusqlite::params_from_iter(row.iter().map(to_sqlite))).unwrap();
            state = state.and_then(|mut state| aggregate.add(&mut state, &row, time).map(|()| state));
            rows.push(row);
        }
        let theirs: Result<Value, _> =
            database.query_row(&format!("select {text} from r"), [], |found| found.get(0));
        match (state, theirs) {
            (Ok(state), Ok(theirs)) => {
                let ours = aggregate.result(&state);
                // Of an equal integer and double `min` and `max` may keep either.
                let same_number = match (&ours, &theirs) {
                    (Datum::Int(a), Value::Real(b)) | (Datum::Float(b), Value::Integer(a)) => *a as f64 == *b,
                    _ => false,
                };
                assert!(
                    agrees(&ours, &theirs) || same_number,
                    "{ours:?} here, {theirs:?} in SQLite\n{rows:?}\n{place}"
                );
            }
            (_, Err(error)) => assert!(error.to_string().contains("integer overflow"), "{error}: {place}"),
            // SQLite forgives a sum that overflowed once a double follows; here the record was bad already.
            (Err(_), Ok(Value::Real(_) | Value::Null)) if text.starts_with("sum") => {}
            (Err(error), Ok(theirs)) => panic!("{error} here, {theirs:?} in SQLite\n{rows:?}\n{place}"),
        }
    }
    println!("{cases} aggregates, seed {seed}");
}
