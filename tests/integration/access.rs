//! What the user may not do, does not see, or would lose again is told before anything is done.

use std::process;
use std::sync::OnceLock;

use crate::support::differential::{ask_number, execute};
use crate::support::{Database, OPERATOR, Options, READER, SAMPLE_PARTITION, Server, Tool};

/// A server with users who do not see all rows of its databases.
fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let sees = |number: u32, table: &str, condition: &str| {
            let database = format!("policy_{}_{number}", process::id());
            format!(
                "<databases><{database}><{table}><filter>{condition}</filter></{table}>\
                 </{database}></databases>"
            )
        };
        let some = "cityHash64(id) % 4 = 0";
        Server::start(Options {
            profiles: [
                "some_observations",
                "some_traces",
                "some_events",
                "some_items",
                "some_of_core",
                "some_of_nothing",
                "blind_to_full",
                "blind_to_core",
                "blind_to_nothing",
            ]
            .map(|name| (name, String::new()))
            .into(),
            of_users: vec![
                ("some_observations", sees(1, "observations", some)),
                ("some_traces", sees(1, "traces", some)),
                ("some_items", sees(1, "dataset_run_items_rmt", some)),
                (
                    "some_events",
                    sees(1, "events_full", "cityHash64(span_id) % 2 = 0"),
                ),
                (
                    "some_of_core",
                    sees(1, "events_core", "cityHash64(span_id) % 2 = 0"),
                ),
                (
                    "some_of_nothing",
                    sees(2, "events_full", "cityHash64(span_id) % 2 = 0"),
                ),
                ("blind_to_full", sees_all_but("events_full")),
                ("blind_to_core", sees_all_but("events_core")),
                ("blind_to_nothing", sees_all_but("nothing")),
            ],
            ..Options::default()
        })
    })
}

/// The right to write everything in the first database of that server, and to read all but a table.
fn sees_all_but(hidden: &str) -> String {
    let database = format!("policy_{}_1", process::id());
    let tables = [
        "observations",
        "traces",
        "dataset_run_items_rmt",
        "events_full",
        "events_core",
    ];
    let seen = tables.iter().filter(|table| **table != hidden);
    let grants: String = seen
        .map(|table| format!("<query>GRANT SELECT ON {database}.{table}</query>"))
        .collect();
    format!(
        "<grants><query>GRANT SHOW, INSERT ON {database}.*</query>\
         <query>GRANT SELECT ON system.*</query>{grants}</grants>"
    )
}

/// The first database of that server, which its policies are about.
fn month() -> &'static Database<'static> {
    static MONTH: OnceLock<Database<'static>> = OnceLock::new();
    MONTH.get_or_init(|| {
        let database = server().sample_month("policy", 2_000);
        // Rows that are not there are not hidden.
        execute(
            &database,
            "DELETE FROM observations WHERE cityHash64(id) % 10 = 0",
        );
        Tool::new(&database)
            .args(["--partition", SAMPLE_PARTITION])
            .run()
            .assert_code(0);
        database
    })
}

fn tool(command: &[&str], user: &str) -> Tool {
    Tool::new(month())
        .args(command.iter().copied())
        .args(["--partition", SAMPLE_PARTITION])
        .env("CLICKHOUSE_USER", user)
}

#[test]
fn rows_that_the_user_does_not_see_are_told_with_their_number() {
    let all = ask_number(
        month(),
        "SELECT sum(rows) FROM system.parts WHERE active AND database = currentDatabase() \
         AND table = 'observations'",
    );
    let outcome = tool(&["plan"], "some_observations").run();
    outcome.assert_code(0);
    let told = format!("of the {all} rows of {}.observations", month().name);
    outcome.assert_stderr_contains(&told);
    outcome.assert_stderr_contains("row policy");
    for (user, table) in [
        ("some_observations", "observations"),
        ("some_traces", "traces"),
        ("some_items", "dataset_run_items_rmt"),
    ] {
        for command in [&["plan"][..], &["--dry-run"]] {
            let with_items = ["--experiments", "--strict"];
            tool(command, user)
                .args(with_items)
                .run()
                .assert_one_error(2, &[table, "row policy", "--strict"]);
        }
    }
    tool(&["plan"], "default")
        .arg("--strict")
        .run()
        .assert_code(0);
}

#[test]
fn nothing_is_written_where_rows_of_the_target_are_hidden() {
    tool(&["plan"], "some_events")
        .run()
        .assert_code(0)
        .assert_stderr_contains("second time");
    for command in [&["--restart"][..], &["repair"]] {
        tool(command, "some_events")
            .run()
            .assert_one_error(2, &["events_full", "row policy", "second time"]);
    }
}

#[test]
fn nothing_is_written_where_rows_that_the_view_made_are_hidden() {
    tool(&["plan"], "some_of_core")
        .run()
        .assert_code(0)
        .assert_stderr_contains("events_core");
    let rows = || ask_number(month(), "SELECT count() FROM events_core");
    let before = rows();
    for command in [&["--restart"][..], &["repair"]] {
        tool(command, "some_of_core")
            .run()
            .assert_one_error(2, &["row policy", "events_core", "second time"]);
    }
    assert_eq!(rows(), before);
}

#[test]
fn who_does_not_see_all_rows_is_not_told_to_delete_what_is_right() {
    for user in [
        "some_observations",
        "some_traces",
        "some_events",
        "some_of_core",
    ] {
        let verify = tool(&["verify"], user).env("STATE_DIR", "nowhere");
        let outcome = verify.run();
        let told = outcome.assert_one_error(1, &["sees", "verify as a user that sees all rows"]);
        for advice in ["by hand", "run `events-backfill repair"] {
            assert!(!told.contains(advice), "{told}");
        }
    }
    for user in ["some_observations", "some_traces"] {
        tool(&["repair"], user)
            .run()
            .assert_one_error(2, &["sees", "treat events of hidden rows as wrong"]);
    }
}

#[test]
fn a_policy_on_an_empty_target_would_keep_rows_from_its_view() {
    // The second one on this server.
    month();
    let database = server().database("policy");
    database.load_small_month();
    Tool::new(&database)
        .args(["--partition", SAMPLE_PARTITION])
        .env("CLICKHOUSE_USER", "some_of_nothing")
        .run()
        .assert_one_error(2, &["row policy", "events_full", "events_core"]);
}

#[test]
fn a_right_to_write_that_is_missing_is_told_before_anything_is_loaded() {
    let (user, password) = READER;
    let of_user = |command| tool(command, user).env("CLICKHOUSE_PASSWORD", password);
    for command in [&["plan"][..], &["--dry-run"], &["repair", "--dry-run"]] {
        let grant = "GRANT INSERT ON";
        let tool = of_user(command);
        tool.run().assert_code(0).assert_stderr_contains(grant);
        tool.arg("--strict").run().assert_one_error(2, &[grant]);
    }
    for command in [&["--restart"][..], &["repair"]] {
        let tool = of_user(command);
        tool.run().assert_one_error(
            2,
            &[
                "may not write to",
                "GRANT INSERT ON",
                "events_full TO reader",
            ],
        );
        assert!(!tool.state_dir().exists(), "{command:?}");
    }
    Tool::new(month())
        .args(["verify", "--partition", SAMPLE_PARTITION])
        .env("STATE_DIR", "nowhere")
        .env("CLICKHOUSE_USER", user)
        .env("CLICKHOUSE_PASSWORD", password)
        .run()
        .assert_code(0);
}

#[test]
fn a_right_to_read_the_events_that_is_missing_is_told_before_anything_is_loaded() {
    for (user, table) in [
        ("blind_to_full", "events_full"),
        ("blind_to_core", "events_core"),
    ] {
        let grant = format!("GRANT SELECT ON {}.{table}", month().name);
        let plan = tool(&["plan"], user);
        plan.run().assert_code(0).assert_stderr_contains(&grant);
        plan.arg("--strict").run().assert_one_error(2, &[&grant]);
        for command in [&["--dry-run"][..], &["--restart"], &["repair"]] {
            let tool = tool(command, user);
            tool.run().assert_one_error(2, &[&grant]);
            assert!(!tool.state_dir().exists(), "{command:?}");
        }
        let verify = tool(&["verify"], user).env("STATE_DIR", "nowhere");
        verify.run().assert_one_error(2, &[&grant]);
    }
}

#[test]
fn a_right_to_merge_that_is_missing_is_told_before_anything_is_compared() {
    // Who may insert into all tables, and read them.
    let repair = tool(&["repair", "--optimize"], "blind_to_nothing");
    repair
        .run()
        .assert_one_error(2, &["GRANT OPTIMIZE ON", "--optimize"]);
    tool(&["repair"], "blind_to_nothing").run().assert_code(0);
}

#[test]
fn the_rights_of_the_readme_are_enough_to_look_at_everything() {
    let server = Server::start(Options {
        config: "<access_control_improvements>\
                 <select_from_system_db_requires_grant>true</select_from_system_db_requires_grant>\
                 </access_control_improvements>"
            .to_owned(),
        profiles: vec![("sees_no_processes", String::new())],
        of_users: vec![(
            "sees_no_processes",
            format!(
                "<grants><query>GRANT SELECT, INSERT, SHOW ON granted_{}_1.*</query>\
                 <query>GRANT SELECT ON system.parts</query>\
                 <query>GRANT SELECT ON system.parts_columns</query></grants>",
                process::id()
            ),
        )],
        ..Options::default()
    });
    let database = server.database("granted");
    database.load_small_month();
    for command in ["plan", "--dry-run"] {
        Tool::new(&database)
            .args([command, "--partition", SAMPLE_PARTITION, "--strict"])
            .env("CLICKHOUSE_USER", OPERATOR.0)
            .env("CLICKHOUSE_PASSWORD", OPERATOR.1)
            .with_defaults()
            .run()
            .assert_code(0);
        let blind = Tool::new(&database)
            .args([command, "--partition", SAMPLE_PARTITION])
            .env("CLICKHOUSE_USER", "sees_no_processes")
            .with_defaults()
            .run();
        blind
            .assert_code(0)
            .assert_stderr_contains("GRANT SELECT ON system.processes TO sees_no_processes");
    }
}

#[test]
fn patch_parts_are_no_months() {
    let database = Server::shared().database("patches");
    database.load_small_month();
    for table in ["observations", "traces"] {
        execute(
            &database,
            &format!(
                "ALTER TABLE {table} MODIFY SETTING enable_block_number_column = 1, \
                 enable_block_offset_column = 1"
            ),
        );
        execute(&database, &format!("OPTIMIZE TABLE {table} FINAL"));
        execute(&database, &format!("SYSTEM STOP MERGES {table}"));
        execute(
            &database,
            &format!("UPDATE {table} SET name = 'changed' WHERE project_id = 'project'"),
        );
    }
    let patches = "SELECT count() FROM system.parts WHERE active \
                   AND database = currentDatabase() AND startsWith(partition_id, 'patch-')";
    assert!(ask_number(&database, patches) > 0);
    let outcome = Tool::new(&database)
        .args(["--all-partitions", "--strict"])
        .run();
    outcome.assert_code(0);
    assert!(!outcome.stderr.contains("patch-"), "{}", outcome.stderr);
    let changed = ask_number(
        &database,
        "SELECT count() FROM observations FINAL WHERE name = 'changed'",
    );
    assert!(changed > 0);
    let written = "SELECT countIf(name = 'changed') FROM events_full FINAL";
    assert_eq!(ask_number(&database, written), changed);
    Tool::new(&database)
        .args(["verify", "--partition", SAMPLE_PARTITION])
        .env("STATE_DIR", "nowhere")
        .run()
        .assert_code(0);
}

#[test]
fn rows_that_a_ttl_takes_are_told() {
    let database = Server::shared().database("expiry");
    database.load_small_month();
    let rows = ask_number(
        &database,
        "SELECT count() FROM observations WHERE toYYYYMM(start_time) = 202406",
    );
    let month = ["--partition", SAMPLE_PARTITION];
    let plan = |words: &[&str]| {
        let outcome = Tool::new(&database).arg("plan").args(month).run();
        outcome.assert_code(0);
        for word in words {
            outcome.assert_stderr_contains(word);
        }
        outcome.stderr.clone()
    };
    for (ttl, reaches) in [
        ("toDateTime(start_time) + INTERVAL 30 DAY", Some(rows)),
        ("toDateTime(start_time) + INTERVAL 300 YEAR", None),
        (
            "toDateTime(event_ts) + toIntervalDay(1) DELETE WHERE type = 'nothing'",
            None,
        ),
    ] {
        execute(
            &database,
            &format!("ALTER TABLE events_full MODIFY TTL {ttl}"),
        );
        match reaches {
            Some(rows) => {
                let all = format!("deletes the events of {rows} of {rows} rows");
                plan(&["warning", "events_full", "30)", &all]);
            }
            None => assert!(!plan(&[]).contains("TTL"), "{ttl}"),
        }
    }
    // Of root spans it cannot be told.
    let outcome = Tool::new(&database)
        .args(["plan", "--root-spans"])
        .args(month)
        .run();
    outcome.assert_code(0).assert_stderr_contains(
        "WHERE type = 'nothing') and partition 202406: it may delete events",
    );
    execute(&database, "ALTER TABLE events_full REMOVE TTL");
    // Also where nothing else is told.
    let late = "toDateTime(start_time) + INTERVAL 30 DAY";
    execute(
        &database,
        &format!("ALTER TABLE events_core MODIFY TTL {late} WHERE type = 'SPAN'"),
    );
    for command in ["plan", "repair"] {
        Tool::new(&database)
            .args([command, "--quiet"])
            .args(month)
            .args(match command {
                "repair" => &["--dry-run"][..],
                _ => &[],
            })
            .run()
            .assert_code(0)
            .assert_stderr_contains("warning: the TTL");
    }
    execute(&database, "ALTER TABLE events_core REMOVE TTL");
    let of_column = "ALTER TABLE events_full MODIFY COLUMN input TTL \
                     toDateTime(start_time) + INTERVAL 30 DAY";
    execute(&database, of_column);
    plan(&[
        "column input of",
        &format!("{rows} of {rows} rows of observations"),
    ]);
    Tool::new(&database)
        .args(["--strict"])
        .args(month)
        .run()
        .assert_one_error(2, &["column input", "REMOVE TTL"]);
    execute(
        &database,
        "ALTER TABLE events_full MODIFY COLUMN input REMOVE TTL",
    );
    assert!(!plan(&[]).contains("TTL"));
    let of_core = "ALTER TABLE events_core MODIFY TTL toDateTime(start_time) + INTERVAL 1 WEEK";
    execute(&database, of_core);
    plan(&["events_core"]);
    let strict = Tool::new(&database).args(month).arg("--strict");
    strict
        .run()
        .assert_one_error(2, &["TTL", "events_core", "--strict"]);

    execute(&database, "ALTER TABLE events_core REMOVE TTL");
    execute(
        &database,
        "ALTER TABLE events_full MODIFY TTL toDateTime(start_time) + INTERVAL 30 DAY",
    );
    let run = Tool::new(&database).args(month).run();
    run.assert_code(0).assert_stderr_contains("TTL");
    execute(&database, "OPTIMIZE TABLE events_full FINAL");
    assert_eq!(ask_number(&database, "SELECT count() FROM events_full"), 0);
    let verify = Tool::new(&database).arg("verify").args(month);
    verify
        .env("STATE_DIR", "nowhere")
        .run()
        .assert_one_error(1, &["missing", "fix first: the TTL"]);
}
