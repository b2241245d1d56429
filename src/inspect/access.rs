//! Whether the user may do what is to be done, and sees what there is.

use std::time::Duration;

use clickhouse::Row;
use serde::Deserialize;

use super::{ACCESS_DENIED, Count, Inspector};
use crate::clickhouse::{RequestError, TableInfo, sql};
use crate::error::Error;
use crate::options::Intent;

/// How often the rows of a table are counted where its parts change meanwhile.
const MOST_COUNTS: usize = 5;
/// How long the server may count: it has to read what a row policy looks at.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Row, Deserialize)]
struct Granted {
    #[serde(rename = "result")]
    granted: u8,
}

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
            Some(level) => Err(Error::Configuration(format!(
                "user '{user}' may not change settings (readonly = {level} in its settings profile), \
                 on which the meaning of statements depends: name another user in CLICKHOUSE_USER; \
                 readonly = 2 is enough to verify"
            ))),
        }
    }

    /// Refuses where the user may not write into the target, or into a table that its views fill,
    /// which is kept right with it.
    pub(super) async fn require_insert(&mut self, target: &TableInfo) -> Result<(), Error> {
        if self.options.intent == Intent::Look {
            return Ok(());
        }
        let user = self.options.connection.user.clone();
        let mut tables = vec![(target.database.clone(), target.name.clone())];
        let fed = self.ask(self.connection.fed_tables(target)).await?;
        tables.extend(fed.into_iter().map(|table| (table.database, table.name)));
        for (database, name) in tables {
            let question = format!("CHECK GRANT INSERT ON {}", sql::qualified(&database, &name));
            let granted = match self.connection.rows::<Granted>(&question).await {
                // A server that cannot be asked says it when there is something to write.
                Err(RequestError::Exception { .. }) => continue,
                granted => self.ask(async { granted }).await?,
            };
            if granted.iter().any(|row| row.granted == 0) {
                self.refuse_to_write(format!(
                    "user '{user}' may not write into {database}.{name}: \
                     GRANT INSERT ON {database}.{name} TO {user}"
                ))?;
            }
        }
        Ok(())
    }

    /// What is in the way of writing: a warning as long as nothing is to be written.
    fn refuse_to_write(&mut self, what: String) -> Result<(), Error> {
        match self.options.intent {
            Intent::Write => Err(Error::Configuration(what)),
            Intent::Rehearse | Intent::Look => self.warn(what),
        }
    }

    /// Notes where the user does not see all rows of a table that is read, or refuses where it is
    /// the target: what is there already would be written once more.
    pub(super) async fn look_for_hidden_rows(
        &mut self,
        sources: &[&TableInfo],
        target: &TableInfo,
    ) -> Result<(), Error> {
        let sources = sources.iter().map(|table| (*table, false));
        for (table, is_target) in sources.chain([(target, true)]) {
            if is_target
                && self.options.intent != Intent::Look
                && self.has_row_policy(table).await?
            {
                let user = &self.options.connection.user;
                self.refuse_to_write(format!(
                    "a row policy of user '{user}' is about {}.{}: what it hides would be written a \
                     second time, and kept from events_core, which a view fills; name a user without \
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
            if is_target && self.options.intent != Intent::Look {
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
        }
        Ok(())
    }

    /// Whether a row policy of the user is about a table, as far as the user may know of it.
    async fn has_row_policy(&self, table: &TableInfo) -> Result<bool, Error> {
        let question = format!(
            "SELECT count() AS count FROM system.row_policies WHERE database = {} \
             AND table IN ({}, '', '*') AND NOT has(apply_to_except, currentUser()) AND (apply_to_all \
             OR hasAny(apply_to_list, arrayConcat([currentUser()], currentRoles())))",
            sql::string(&table.database),
            sql::string(&table.name)
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
            return Err(Error::Configuration(format!("{what} (--strict)")));
        }
        self.notes.push(format!("warning: {what}"));
        Ok(())
    }
}
