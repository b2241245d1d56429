//! Whether the user may do what is to be done, and sees what there is.

use std::time::Duration;

use super::{ACCESS_DENIED, Count, Inspector};
use crate::cli::options::Intent;
use crate::clickhouse::{RequestError, TableInfo, quoting};
use crate::error::Error;

/// How often the rows of a table are counted where its parts change meanwhile.
const MOST_COUNTS: usize = 5;
/// How long the server may count: it has to read what a row policy looks at.
const PATIENCE: Duration = Duration::from_secs(300);

impl Inspector {
    /// Refuses where the user may not even say which settings a statement has, or only read where
    /// something is to be written.
    pub(super) async fn require_changeable_settings(&mut self) -> Result<(), Error> {
        let user = self.options.connection.user.clone();
        match self.ask(self.connection.readonly_level()).await? {
            None => Ok(()),
            Some(2) => match self.options.intent {
                Intent::Look => Ok(()),
                _ => self.refuse_to_write(format!(
                    "user '{user}' may only read (readonly = 2 in its settings profile): name another \
                     user in CLICKHOUSE_USER"
                )),
            },
            Some(level) => Err(Error::configuration(format!(
                "user '{user}' may not change settings (readonly = {level} in its settings profile), \
                 on which the meaning of statements depends: name another user in CLICKHOUSE_USER; \
                 readonly = 2 is enough to verify"
            ))),
        }
    }

    /// Tells of limits that the profile holds: what takes more than that ends the run.
    pub(super) fn warn_of_held_limits(&mut self) -> Result<(), Error> {
        for (name, value) in self.connection.held_limits().to_vec() {
            self.warn(format!(
                "the settings profile of user '{}' holds {name} = {value}: what takes more than that \
                 ends the run; let the profile allow to change it",
                self.options.connection.user
            ))?;
        }
        Ok(())
    }

    /// The target, and the tables that its views fill, which are kept right with it.
    pub(super) async fn written_tables(&self, target: &TableInfo) -> Result<Vec<TableInfo>, Error> {
        let mut tables = vec![target.clone()];
        for fed in self.ask(self.connection.fed_tables(target)).await? {
            let table = self.connection.table(&fed.database, &fed.name);
            tables.extend(self.ask(table).await?);
        }
        Ok(tables)
    }

    /// Refuses where the user may not write into one of the tables that are written to.
    pub(super) async fn require_insert(&mut self, written: &[TableInfo]) -> Result<(), Error> {
        if self.options.intent == Intent::Look {
            return Ok(());
        }
        let user = self.options.connection.user.clone();
        for table in written {
            if !self.ask(self.connection.may("INSERT", table)).await? {
                let name = format!("{}.{}", table.database, table.name);
                self.refuse_to_write(format!(
                    "user '{user}' may not write into {name}: GRANT INSERT ON {name} TO {user}"
                ))?;
            }
        }
        Ok(())
    }

    /// Refuses where the user may not read one of the tables that are written to: what is there
    /// already is left out, and what is not there yet is looked for.
    pub(super) async fn require_select(&mut self, written: &[TableInfo]) -> Result<(), Error> {
        let user = self.options.connection.user.clone();
        for table in written.iter().filter(|table| holds_events(table)) {
            let question = format!("SELECT * FROM {} LIMIT 0", table.qualified_name());
            match self.connection.check(&question).await {
                Err(error) if error.code() == Some(ACCESS_DENIED) => {
                    let name = format!("{}.{}", table.database, table.name);
                    let what = format!(
                        "user '{user}' may not read {name}, so what is there already cannot be told: \
                         GRANT SELECT ON {name} TO {user}"
                    );
                    match self.options.intent {
                        // A plan does without.
                        Intent::Rehearse if !self.options.dry_run => self.warn(what)?,
                        _ => return Err(Error::configuration(what)),
                    }
                }
                readable => self.ask(async { readable }).await?,
            }
        }
        Ok(())
    }

    /// Tells where the user may not see which statements are under way: a run that is resumed waits
    /// for the inserts of the process before.
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

    /// What is in the way of writing: a warning as long as nothing is to be written.
    fn refuse_to_write(&mut self, what: String) -> Result<(), Error> {
        match self.options.intent {
            Intent::Write => Err(Error::configuration(what)),
            Intent::Rehearse | Intent::Look => self.warn(what),
        }
    }

    /// Notes where the user does not see all rows of a table that is read, or refuses where it is
    /// written to: what is there already would be written once more. Gives a sentence about the
    /// rows that are not seen.
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
                    "a row policy of user '{user}' is about {}.{}: what it hides would be written a \
                     second time, or kept from events_core, which a view fills; name a user without \
                     one in CLICKHOUSE_USER",
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
                "user '{}' sees {seen} of the {all} rows of {}.{} (a row policy, or a filter in its \
                 settings profile)",
                self.options.connection.user, table.database, table.name
            );
            if is_written {
                self.refuse_to_write(format!(
                    "{what}: what it does not see would be written a second time; name a user that \
                     sees all rows in CLICKHOUSE_USER"
                ))?;
            } else {
                self.warn(format!(
                    "{what}: nothing is made of the others; name a user that sees all rows in \
                     CLICKHOUSE_USER, unless that is what you want"
                ))?;
            }
            hidden.get_or_insert(what);
        }
        Ok(hidden)
    }

    /// Whether a row policy of the user is about a table, as far as the user may know of it.
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

    /// How many rows of a table the user sees, and how many are in its parts; nothing where they
    /// change all the time, or it takes too long.
    async fn seen_rows(&self, table: &TableInfo) -> Result<Option<(u64, u64)>, Error> {
        // Rows that a lightweight DELETE has masked are in the parts.
        let count = format!(
            "SELECT count() AS count FROM {} SETTINGS apply_deleted_mask = 0",
            table.qualified_name()
        );
        for _ in 0..MOST_COUNTS {
            let before = self.ask(self.connection.parts(table)).await?;
            let seen = self.connection.rows_within::<Count>(&count, PATIENCE);
            let seen = match seen.await {
                // That it may not read at all is told where it has to.
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

    /// Tells the user of something that may be as it is meant, unless it is to be an error.
    pub(super) fn warn(&mut self, what: String) -> Result<(), Error> {
        if self.options.strict {
            return Err(Error::configuration(format!("{what} (--strict)")));
        }
        self.warnings.push(what);
        Ok(())
    }
}

/// Whether a table can be counted, and has an event in each row: a view may fill others, too.
fn holds_events(table: &TableInfo) -> bool {
    table.engine.contains("MergeTree") && table.column("span_id").is_some()
}
