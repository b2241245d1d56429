//! `Distributed` tables: they hold no rows themselves but stand for a table on each shard of a cluster.

use super::schema::TableInfo;

impl TableInfo {
    /// Whether the rows are in another table, on each shard.
    pub(crate) fn is_distributed(&self) -> bool {
        self.engine == "Distributed"
    }

    /// Database and name of the table behind it on each shard.
    pub(crate) fn behind(&self) -> Option<(String, String)> {
        behind(&self.engine_full)
    }
}

fn behind(engine_full: &str) -> Option<(String, String)> {
    let mut arguments = Arguments(engine_full.strip_prefix("Distributed(")?);
    let _cluster = arguments.next()?;
    Some((arguments.next()?, arguments.next()?))
}

/// The names that an engine's arguments begin with, quoted or not.
struct Arguments<'a>(&'a str);

impl Iterator for Arguments<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let mut name = String::new();
        let mut quote = None;
        let mut letters = self.0.char_indices();
        while let Some((at, letter)) = letters.next() {
            match (letter, quote) {
                ('\\', Some(_)) => name.extend(letters.next().map(|(_, escaped)| escaped)),
                ('\'' | '`', None) => quote = Some(letter),
                (_, Some(end)) if letter == end => quote = None,
                (',' | ')', None) => {
                    self.0 = &self.0[at + 1..];
                    return (!name.is_empty()).then_some(name);
                }
                (' ', None) => {}
                _ => name.push(letter),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_behind_a_distributed_one_is_found_in_its_definition() {
        let expected = Some(("langfuse".to_owned(), "observations_local".to_owned()));
        for arguments in [
            "'default', 'langfuse', 'observations_local'",
            "'default', 'langfuse', 'observations_local', cityHash64(project_id), 'a policy'",
            "default, langfuse, `observations_local`",
        ] {
            let engine = format!("Distributed({arguments}) SETTINGS fsync_after_insert = 1");
            assert_eq!(behind(&engine), expected, "{engine}");
        }
        let odd = behind(r"Distributed('a', 'it\'s, (b)', 'c')");
        assert_eq!(odd, Some(("it's, (b)".to_owned(), "c".to_owned())));
        for other in [
            "Distributed('a', 'b",
            "ReplicatedReplacingMergeTree('/a', 'b', 'c')",
            "",
        ] {
            assert_eq!(behind(other), None, "{other}");
        }
    }
}
