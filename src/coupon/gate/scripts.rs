//! The list of Lua scripts, embedded in the binary, each with the keys it is given.
//!
//! The Redis adapter calls them. What must always hold (tests below): a script's header, its file name and this list
//! name the same keys; a script touches no key but those; no key gets a time to live.

use crate::coupon::ids::CouponId;

/// One key of a campaign. All keys of one campaign share a hash tag, so they live on one node of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Meta,
    Issue,
    Slot,
    Free,
    Pending,
}

impl Key {
    /// The key's name for one campaign.
    pub(super) fn of(self, coupon: CouponId) -> String {
        format!("coupon:{}:{{{coupon}}}", self.word())
    }

    fn word(self) -> &'static str {
        match self {
            Key::Meta => "meta",
            Key::Issue => "issue",
            Key::Slot => "slot",
            Key::Free => "free",
            Key::Pending => "pending",
        }
    }
}

/// One script.
#[derive(Debug)]
pub(super) struct Script {
    /// File name in `lua/`, without the extension.
    pub name: &'static str,
    /// The whole text.
    pub source: &'static str,
    /// What `KEYS[1]`, `KEYS[2]`, ... are.
    pub keys: &'static [Key],
}

macro_rules! scripts {
    ($($constant:ident = $name:literal [$($key:ident),*];)*) => {
        $(pub(super) const $constant: Script = Script {
            name: $name,
            source: include_str!(concat!("../../../lua/", $name, ".lua")),
            keys: &[$(Key::$key),*],
        };)*

        /// Every script.
        pub(super) const ALL: &[Script] = &[$($constant),*];
    };
}

scripts! {
    ADMIT_SEAT = "admit_seat-5" [Meta, Issue, Slot, Free, Pending];
    CONFIRM_SEAT = "confirm_seat-2" [Slot, Pending];
    RELEASE_SEAT = "release_seat-4" [Issue, Slot, Free, Pending];
    OPEN_CAMPAIGN = "open_campaign-5" [Meta, Issue, Slot, Free, Pending];
    AMEND_CAMPAIGN = "amend_campaign-1" [Meta];
    BEGIN_REBUILD = "begin_rebuild-5" [Meta, Issue, Slot, Free, Pending];
    LOAD_MEMBERS = "load_members-4" [Meta, Issue, Slot, Free];
    FINISH_REBUILD = "finish_rebuild-1" [Meta];
    CLAIM_PENDING = "claim_pending-3" [Pending, Slot, Issue];
    EXTEND_PENDING = "extend_pending-2" [Pending, Slot];
    READ_STOCK = "read_stock-5" [Meta, Issue, Slot, Free, Pending];
    READ_MEMBERS = "read_members-3" [Issue, Slot, Pending];
    READ_SEAT = "read_seat-3" [Issue, Slot, Pending];
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that is wrong between a script's header, its name, its code and the list above.
    fn faults(script: &Script) -> Vec<String> {
        let mut faults = Vec::new();
        let mut fault = |text: String| faults.push(format!("lua/{}.lua: {text}", script.name));
        let (header, code): (Vec<&str>, Vec<&str>) = {
            let lines: Vec<&str> = script.source.lines().collect();
            let end = lines.iter().position(|line| !line.starts_with("--")).unwrap_or(lines.len());
            (lines[..end].to_vec(), lines[end..].to_vec())
        };

        let (verb_noun, count) = script.name.rsplit_once('-').unwrap_or((script.name, "none"));
        if count.parse() != Ok(script.keys.len()) {
            fault(format!("the file name says {count} keys, the list {}", script.keys.len()));
        }
        if !header.first().is_some_and(|line| line.starts_with(&format!("-- {verb_noun}: "))) {
            fault(format!("the header must begin with '-- {verb_noun}: '"));
        }
        for word in ["-- Guarantee: ", "-- Returns "] {
            if !header.iter().any(|line| line.starts_with(word)) {
                fault(format!("the header lacks '{word}'"));
            }
        }

        let documented: Vec<&&str> = header.iter().filter(|line| line.starts_with("-- KEYS[")).collect();
        if documented.len() != script.keys.len() {
            fault(format!(
                "the header documents {} keys, the list has {}",
                documented.len(),
                script.keys.len()
            ));
        }
        for (i, key) in script.keys.iter().enumerate() {
            let word = key.word();
            let line = format!("-- KEYS[{}] coupon:{word}:{{id}} ", i + 1);
            if !documented.get(i).is_some_and(|documented| documented.starts_with(&line)) {
                fault(format!("the header lacks '{line}'"));
            }
            let local = format!("local {word}Key = KEYS[{}]", i + 1);
            if !code.contains(&local.as_str()) {
                fault(format!("the code lacks '{local}'"));
            }
        }

        let arguments = header.iter().filter(|line| line.starts_with("-- ARGV[")).count();
        for line in &code {
            let line = line.split("--").next().unwrap_or_default();
            if line.contains("KEYS[") && !line.starts_with("local ") {
                fault(format!("keys are bound to locals first: {line}"));
            }
            for after in line.split("ARGV[").skip(1) {
                let index = after.split(']').next().unwrap_or_default();
                if index.parse::<usize>().is_ok_and(|index| index > arguments) {
                    fault(format!("ARGV[{index}] is not documented"));
                }
            }
            for call in line.split("redis.call(").skip(1) {
                let mut words = call.split(&['\'', ',', ' ', ')'][..]).filter(|word| !word.is_empty());
                let command = words.next().unwrap_or_default();
                if command.contains("EXPIRE") || command == "SETEX" || command == "FLUSHALL" {
                    fault(format!("{command} is not allowed"));
                }
                let key = words.next().unwrap_or_default();
                if command != "TIME" && !script.keys.iter().any(|known| format!("{}Key", known.word()) == key)
                {
                    fault(format!("{command} touches {key}, which is none of KEYS"));
                }
            }
        }
        faults
    }

    #[test]
    fn every_header_says_what_the_code_does() {
        let faults: Vec<String> = ALL.iter().flat_map(faults).collect();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    #[test]
    fn the_header_check_sees_faults() {
        let source = "-- wrong: does it.\n\nlocal slotKey = KEYS[2]\nredis.call('EXPIRE', metaKey, ARGV[3])\n\
                      redis.call('DEL', KEYS[1])\n";
        let script = Script { name: "drop_seat-2", source, keys: &[Key::Slot] };
        let found = faults(&script).join("\n");
        for expected in [
            "the file name says 2 keys",
            "must begin with '-- drop_seat: '",
            "lacks '-- Guarantee: '",
            "lacks '-- Returns '",
            "documents 0 keys",
            "the code lacks 'local slotKey = KEYS[1]'",
            "EXPIRE is not allowed",
            "touches metaKey",
            "ARGV[3] is not documented",
            "keys are bound to locals first",
        ] {
            assert!(found.contains(expected), "'{expected}' is not among\n{found}");
        }
    }

    #[test]
    fn every_file_is_listed() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/lua");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap().replace(".lua", ""))
            .collect();
        let mut listed: Vec<&str> = ALL.iter().map(|script| script.name).collect();
        files.sort();
        listed.sort();
        assert_eq!(files, listed);
    }

    #[test]
    fn keys_of_one_campaign_share_a_hash_tag() {
        let coupon = CouponId::new(42).unwrap();
        assert_eq!(Key::Issue.of(coupon), "coupon:issue:{42}");
        assert_eq!(Key::Pending.of(coupon), "coupon:pending:{42}");
    }
}
