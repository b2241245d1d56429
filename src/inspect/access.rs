//! Checks that the user has the rights for the work and sees all rows.

use std::time::Duration;

use super::{ACCESS_DENIED, Count, Inspector};
use crate::cli::options::Intent;
use crate::clickhouse::{RequestError, TableInfo, quoting};
use crate::error::Error;

/// How many times to count a table whose parts keep changing.
const MOST_COUNTS: usize = 5;
/// How long a count may take: with a row policy the server has to read the columns that it tests.
const PATIENCE: Duration = Duration::from_secs(300);

impl Inspector {
    /// Fails if the user may not change settings, or is read-only although the command writes.
    pub(super) async fn require_changeable_settings(&mut self) -> Result<(), Error> {
        let user = self.options.connection.user.clone();
        match self.ask(self.connection.readonly_level()).await? {
            None => Ok(()),
            Some(2) => match self.options.intent {
                Intent::Look => Ok(()),
                _ => self.refuse_to_write(format!(
                    "user '{user}' is read-only (readonly = 2 in its settings profile): set \
                     CLICKHOUSE_USER to another user"
                )),
            },
            Some(level) => Err(Error::configuration(format!(
                "user '{user}' may not change settings (readonly = {level} in its settings profile), \
                 but this program has to: set CLICKHOUSE_USER to another user; readonly = 2 is enough \
                 for verify"
            ))),
        }
    }

    /// Warns of limits that the profile pins: exceeding one ends the run.
    pub(super) fn warn_of_held_limits(&mut self) -> Result<(), Error> {
        for (name, value) in self.connection.held_limits().to_vec() {
            self.warn(format!(
                "user '{}' may not change {name} ({value}), and a statement that exceeds it ends the run: \
                 remove the constraint on {name} from the user's settings profile",
                self.options.connection.user
            ))?;
        }
        Ok(())
    }

    /// The target and the tables that its views fill, which the run keeps correct too.
    pub(super) async fn written_tables(&self, target: &TableInfo) -> Result<Vec<TableInfo>, Error> {
        let mut tables = vec![target.clone()];
        for fed in self.ask(self.connection.fed_tables(target)).await? {
            let table = self.connection.table(&fed.database, &fed.name);
            tables.extend(self.ask(table).await?);
        }
        Ok(tables)
    }

    /// Fails if the user may not insert into one of the tables that the run writes.
    pub(super) async fn require_insert(&mut self, written: &[TableInfo]) -> Result<(), Error> {
        if self.options.intent == Intent::Look {
            return Ok(());
        }
        let user = self.options.connection.user.clone();
        for table in written {
            if !self.ask(self.connection.may("INSERT", table)).await? {
                let name = format!("{}.{}", table.database, table.name);
                self.refuse_to_write(format!(
                    "user '{user}' may not write to {name}: GRANT INSERT ON {name} TO {user}"
                ))?;
            }
        }
        Ok(())
    }

    /// Fails if the user may not read one of the tables that the run writes: the run reads them to skip
    /// rows that are already there, verify to find missing ones.
    pub(super) async fn require_select(&mut self, written: &[TableInfo]) -> Result<(), Error> {
        let user = self.options.connection.user.clone();
        for table in written.iter().filter(|table| holds_events(table)) {
            let question = format!("SELECT * FROM {} LIMIT 0", table.qualified_name());
            match self.connection.check(&question).await {
                Err(error) if error.code() == Some(ACCESS_DENIED) => {
                    let name = format!("{}.{}", table.database, table.name);
                    let what = format!(
                        "user '{user}' may not read {name}, so rows that are already there cannot be skipped: \
                         GRANT SELECT ON {name} TO {user}"
                    );
                    match self.options.intent {
                        // A plan works without.
                        Intent::Rehearse if !self.options.dry_run => self.warn(what)?,
                        _ => return Err(Error::configuration(what)),
                    }
                }
                readable => self.ask(async { readable }).await?,
            }
        }
        Ok(())
    }

    /// Warns if the user may not list running statements: a resumed run waits for inserts of the previous
    /// process.
    pub(super) async fn look_for_processes(&mut self) -> Result<(), Error> {
        if self.options.intent == Intent::Look {
            return Ok(());
        }
        let question = "SELECT query_id FROM system.processes LIMIT 0";
        match self.connection.check(question).await {
            Err(error) if error.code() == Some(ACCESS_DENIED) => {
                let user = self.options.connection.user.clone();
                self.warn(format!(
                    "user '{user}' may not read system.processes, which --resume needs: GRANT SELECT ON \
                     system.processes TO {user}"
                ))
            }
            asked => self.ask(async { asked }).await,
        }
    }

    /// An error for commands that write, a warning for the others.
    fn refuse_to_write(&mut self, what: String) -> Result<(), Error> {
        match self.options.intent {
            Intent::Write => Err(Error::configuration(what)),
            Intent::Rehearse | Intent::Look => self.warn(what),
        }
    }

    /// Warns if rows of a source are hidden from the user, and fails if rows of the target are: they would
    /// be written a second time. Returns a sentence about the hidden rows.
    pub(super) async fn look_for_hidden_rows(
        &mut self,
        sources: &[&TableInfo],
        written: &[TableInfo],
    ) -> Result<Option<String>, Error> {
        let is_to_be_written = self.options.intent != Intent::Look;
        let mut hidden = None;
        let sources = sources.iter().map(|table| (*table, false));
        let events = written.iter().filter(|table| holds_events(table));
        for (table, is_written) in sources.chain(events.map(|table| (table, is_to_be_written))) {
            if is_written && self.has_row_policy(table).await? {
                let user = &self.options.connection.user;
                self.refuse_to_write(format!(
                    "a row policy for user '{user}' applies to {}.{}: rows that it hides would be written \
                     a second time, or be missing in events_core, which a view fills; set CLICKHOUSE_USER \
                     to a user without a row policy",
                    table.database, table.name
                ))?;
                continue;
            }
            let Some((seen, all)) = self.seen_rows(table).await? else {
                continue;
            };
            if seen >= all {
                continue;
            }
            let what = format!(
                "user '{}' sees only {seen} of the {all} rows of {}.{} (a row policy, or a filter in its \
                 settings profile)",
                self.options.connection.user, table.database, table.name
            );
            if is_written {
                self.refuse_to_write(format!(
                    "{what}: the hidden rows would be written a second time; set CLICKHOUSE_USER to a user \
                     that sees all rows"
                ))?;
            } else {
                self.warn(format!(
                    "{what}: the hidden rows are not backfilled; set CLICKHOUSE_USER to a user that sees \
                     all rows, unless you want this"
                ))?;
            }
            hidden.get_or_insert(what);
        }
        Ok(hidden)
    }

    /// Whether a row policy for the user applies to a table, as far as the user may see policies.
    async fn has_row_policy(&self, table: &TableInfo) -> Result<bool, Error> {
        let question = format!(
            "SELECT count() AS count FROM system.row_policies WHERE database = {} \
             AND table IN ({}, '', '*') AND NOT has(apply_to_except, currentUser()) AND (apply_to_all \
             OR hasAny(apply_to_list, arrayConcat([currentUser()], currentRoles())))",
            quoting::string(&table.database),
            quoting::string(&table.name)
        );
        match self.connection.rows::<Count>(&question).await {
            Err(error) if error.code() == Some(ACCESS_DENIED) => Ok(false),
            policies => {
                let policies = self.ask(async { policies }).await?;
                Ok(policies.iter().any(|row| row.count > 0))
            }
        }
    }

    /// How many rows of a table the user sees, and how many its parts have; `None` if the parts keep
    /// changing, or counting takes too long.
    async fn seen_rows(&self, table: &TableInfo) -> Result<Option<(u64, u64)>, Error> {
        // The parts still count rows that a lightweight DELETE has masked.
        let count = format!(
            "SELECT count() AS count FROM {} SETTINGS apply_deleted_mask = 0",
            table.qualified_name()
        );
        for _ in 0..MOST_COUNTS {
            let before = self.ask(self.connection.parts(table)).await?;
            let seen = self.connection.rows_within::<Count>(&count, PATIENCE);
            let seen = match seen.await {
                // A missing right is reported where the table has to be read.
                Err(error)
                    if matches!(error, RequestError::TimedOut { .. })
                        || error.code() == Some(ACCESS_DENIED) =>
                {
                    return Ok(None);
                }
                seen => self.ask(async { seen }).await?,
            };
            if self.ask(self.connection.parts(table)).await? == before {
                let seen = seen.first().map_or(0, |row| row.count);
                return Ok(Some((seen, before.rows)));
            }
        }
        Ok(None)
    }

    /// Adds a warning; with --strict an error instead.
    pub(super) fn warn(&mut self, what: String) -> Result<(), Error> {
        if self.options.strict {
            return Err(Error::configuration(format!("{what} (--strict)")));
        }
        self.warnings.push(what);
        Ok(())
    }
}

/// Whether a table holds events and can be counted: a view may fill other tables too.
fn holds_events(table: &TableInfo) -> bool {
    table.engine.contains("MergeTree") && table.column("span_id").is_some()
}
