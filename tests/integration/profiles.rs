//! Whatever the settings profile of the user says, a run writes the same events, and verify finds them
//! equal; what the profile does not let it change is named.

use std::sync::OnceLock;
use std::time::Duration;

use crate::support::differential::{ask, ask_number, execute, slow_down};
use crate::support::{Database, Options, SAMPLE_PARTITION, Server, Tool};

/// Profiles with settings that change what a statement means, or ends it.
const PROFILES: &[(&str, &[(&str, &str)])] = &[
    ("zone", &[("session_timezone", "Asia/Shanghai")]),
    ("far_zone", &[("session_timezone", "Pacific/Marquesas")]),
    (
        "joins",
        &[
            ("join_use_nulls", "1"),
            ("join_default_strictness", "ANY"),
            ("any_join_distinct_right_table_keys", "1"),
            ("transform_null_in", "1"),
            ("join_any_take_last_row", "1"),
        ],
    ),
    (
        "groups",
        &[
            ("aggregate_functions_null_for_empty", "1"),
            ("empty_result_for_aggregation_by_empty_set", "1"),
            ("group_by_use_nulls", "1"),
            ("union_default_mode", "DISTINCT"),
            ("count_distinct_implementation", "uniqHLL12"),
        ],
    ),
    (
        "formats",
        &[
            ("output_format_native_encode_types_in_binary_format", "1"),
            ("input_format_native_decode_types_in_binary_format", "1"),
            ("output_format_binary_encode_types_in_binary_format", "1"),
            ("low_cardinality_allow_in_native_format", "0"),
            ("output_format_native_write_json_as_string", "1"),
            ("send_progress_in_http_headers", "1"),
            ("http_wait_end_of_query", "1"),
        ],
    ),
    (
        "texts",
        &[
            ("date_time_output_format", "iso"),
            ("date_time_input_format", "best_effort_us"),
            ("cast_string_to_date_time_mode", "best_effort"),
            ("bool_true_representation", "yes"),
            ("bool_false_representation", "no"),
            ("output_format_json_quote_64bit_integers", "1"),
            ("output_format_decimal_trailing_zeros", "1"),
            ("cast_keep_nullable", "1"),
            ("enable_extended_results_for_datetime_functions", "1"),
        ],
    ),
    (
        "which_rows",
        &[
            ("limit", "10"),
            ("offset", "3"),
            ("apply_deleted_mask", "0"),
            ("use_query_cache", "1"),
            ("extremes", "1"),
            ("final", "1"),
            ("do_not_merge_across_partitions_select_final", "1"),
            ("additional_result_filter", "rand() % 2 = 0"),
            ("force_primary_key", "1"),
            ("force_index_by_date", "1"),
        ],
    ),
    (
        "language",
        &[
            ("compatibility", "22.3"),
            ("enable_analyzer", "0"),
            ("prefer_column_name_to_alias", "1"),
            ("enable_positional_arguments", "0"),
            ("asterisk_include_materialized_columns", "1"),
            ("asterisk_include_alias_columns", "1"),
            ("enable_global_with_statement", "0"),
        ],
    ),
    (
        "limits",
        &[
            ("max_rows_in_set", "5"),
            ("set_overflow_mode", "break"),
            ("max_rows_to_group_by", "10"),
            ("group_by_overflow_mode", "any"),
            ("max_rows_in_distinct", "10"),
            ("distinct_overflow_mode", "break"),
            ("max_rows_in_join", "10"),
            ("join_overflow_mode", "break"),
            ("max_rows_to_sort", "10"),
            ("sort_overflow_mode", "break"),
            ("max_rows_to_read", "100"),
            ("read_overflow_mode", "break"),
            ("max_result_rows", "100"),
            ("result_overflow_mode", "break"),
            ("max_execution_time", "1"),
            ("timeout_overflow_mode", "break"),
            ("max_columns_to_read", "3"),
        ],
    ),
    (
        "inserts",
        &[
            ("async_insert", "1"),
            ("wait_for_async_insert", "0"),
            ("insert_deduplication_token", "always the same"),
            ("materialized_views_ignore_errors", "1"),
            ("input_format_defaults_for_omitted_fields", "0"),
            ("optimize_on_insert", "1"),
        ],
    ),
];

/// A profile with a setting that the user may not change.
fn holds(name: &str, value: &str) -> String {
    format!("<{name}>{value}</{name}><constraints><{name}><const/></{name}></constraints>")
}

fn settings(settings: &[(&str, &str)]) -> String {
    let elements = settings.iter();
    elements
        .map(|(name, value)| format!("<{name}>{value}</{name}>"))
        .collect()
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let profiles = PROFILES.iter().map(|(name, of)| (*name, settings(of)));
        let others = [
            ("held", holds("join_use_nulls", "1")),
            ("held_as_it_must_be", holds("join_use_nulls", "0")),
            ("short", holds("max_execution_time", "2")),
            ("few_rows", holds("limit", "100")),
            ("later_rows", holds("offset", "7")),
            ("more_rows", holds("extremes", "1")),
            ("masked_rows", holds("apply_deleted_mask", "0")),
            ("cached", holds("use_query_cache", "1")),
            ("short_statements", holds("max_query_size", "1000")),
            ("block", holds("max_block_size", "65409")),
            ("threads", holds("max_threads", "1")),
            (
                "long_statements",
                "<max_query_size>1000000</max_query_size><constraints><max_query_size>\
                 <min>1000000</min></max_query_size></constraints>"
                    .to_owned(),
            ),
            ("small_parts", holds("min_insert_block_size_rows", "100")),
            ("little_memory", holds("max_memory_usage", "20000000")),
            ("few_bytes", holds("max_bytes_to_read", "10000")),
            ("few_columns", holds("max_columns_to_read", "8")),
            ("few_partitions", holds("max_partitions_to_read", "1")),
            (
                "few_threads",
                "<max_block_size>100</max_block_size><max_threads>1</max_threads><constraints>\
                 <max_block_size><max>1000</max></max_block_size></constraints>"
                    .to_owned(),
            ),
            ("only_reads", "<readonly>2</readonly>".to_owned()),
            ("changes_nothing", "<readonly>1</readonly>".to_owned()),
        ];
        Server::start(Options {
            profiles: profiles.chain(others).collect(),
            ..Options::default()
        })
    })
}

/// The sample month, with rows that a lightweight DELETE has masked.
fn month() -> &'static Database<'static> {
    static MONTH: OnceLock<Database<'static>> = OnceLock::new();
    MONTH.get_or_init(|| {
        let database = server().sample_month("profiles", 3_000);
        for table in ["observations", "traces"] {
            execute(
                &database,
                &format!("DELETE FROM {table} WHERE cityHash64(id) % 50 = 0"),
            );
        }
        database
    })
}

/// A database with the sources of [`month`] and an empty target.
fn copy(name: &str) -> Database<'static> {
    let source = month();
    let database = source.server.database(name);
    database.load_schema();
    for table in ["traces", "observations", "dataset_run_items_rmt"] {
        execute(&database, &format!("DROP TABLE {table}"));
        let original = format!("`{}`.{table}", source.name);
        execute(
            &database,
            &format!("CREATE TABLE {table} CLONE AS {original}"),
        );
    }
    database
}

fn tool(database: &Database, user: &str) -> Tool {
    Tool::new(database)
        .args(["--partition", SAMPLE_PARTITION])
        .env("CLICKHOUSE_USER", user)
}

/// Another command of the program.
fn command(database: &Database, user: &str, name: &str) -> Tool {
    Tool::new(database)
        .args([name, "--partition", SAMPLE_PARTITION])
        .env("CLICKHOUSE_USER", user)
}

fn verify(database: &Database, user: &str) -> Tool {
    command(database, user, "verify").env("STATE_DIR", "nowhere")
}

/// All events, as one number.
fn events(database: &Database) -> String {
    ask(
        database,
        "SELECT count(), sum(cityHash64(toString(tuple(*)))) FROM events_full FINAL",
    )
}

/// What a run of a user without any setting writes, with these options.
fn expected(options: &'static [&'static str]) -> String {
    static EXPECTED: OnceLock<[String; 2]> = OnceLock::new();
    let expected = EXPECTED.get_or_init(|| {
        [WITH_ALL, WITHOUT_ITEMS].map(|options| {
            let database = copy("expected");
            tool(&database, "default")
                .args(options.iter().copied())
                .run()
                .assert_code(0);
            events(&database)
        })
    });
    expected[usize::from(options == WITHOUT_ITEMS)].clone()
}

const WITH_ALL: &[&str] = &["--root-spans", "--experiments"];
const WITHOUT_ITEMS: &[&str] = &["--root-spans", "--exclude-dataset-items"];

#[track_caller]
fn assert_means_the_same(profile: &str) {
    assert!(PROFILES.iter().any(|known| known.0 == profile));
    for options in [WITH_ALL, WITHOUT_ITEMS] {
        let database = copy(profile);
        let of_user = |tool: Tool| tool.args(options.iter().copied());
        of_user(command(&database, profile, "plan"))
            .run()
            .assert_code(0);
        of_user(tool(&database, profile)).run().assert_code(0);
        assert_eq!(events(&database), expected(options), "{options:?}");
        for user in [profile, "default"] {
            of_user(verify(&database, user)).run().assert_code(0);
        }
    }
    // Several months are compared by their days.
    let database = copy(profile);
    Tool::new(&database)
        .args(["--all-partitions", "--root-spans", "--experiments"])
        .env("CLICKHOUSE_USER", profile)
        .run()
        .assert_code(0);
    Tool::new(&database)
        .env("STATE_DIR", "nowhere")
        .args([
            "verify",
            "--all-partitions",
            "--root-spans",
            "--experiments",
        ])
        .env("CLICKHOUSE_USER", profile)
        .run()
        .assert_code(0);
    // What is damaged is found and mended by such a user too.
    execute(
        &database,
        "DELETE FROM events_full WHERE cityHash64(span_id) % 40 = 0",
    );
    let mend = command(&database, profile, "repair")
        .arg("--optimize")
        .args(WITH_ALL.iter().copied());
    mend.run().assert_code(0);
    assert!(mend.report()["rows_written"].as_u64().unwrap() > 30);
    let of_month = "SELECT count() FROM events_core FINAL";
    let twice = ask_number(&database, of_month);
    assert_eq!(
        twice,
        ask_number(&database, &of_month.replace(" FINAL", ""))
    );
    verify(&database, "default")
        .args(WITH_ALL.iter().copied())
        .run()
        .assert_code(0);
}

macro_rules! profiles {
    ($($test:ident: $profile:literal,)*) => {
        $(
            #[test]
            fn $test() {
                assert_means_the_same($profile);
            }
        )*
    };
}

profiles! {
    the_zone_of_the_session_plays_no_part: "zone",
    a_zone_that_is_half_an_hour_off_plays_no_part: "far_zone",
    nulls_and_strictness_of_joins_play_no_part: "joins",
    what_groups_are_of_nothing_plays_no_part: "groups",
    how_types_are_encoded_plays_no_part: "formats",
    how_values_are_written_as_texts_plays_no_part: "texts",
    which_rows_a_profile_shows_plays_no_part: "which_rows",
    the_language_of_an_older_version_plays_no_part: "language",
    limits_that_end_a_statement_without_a_word_play_no_part: "limits",
    how_inserts_are_done_plays_no_part: "inserts",
}

#[test]
fn a_setting_that_the_profile_holds_at_another_value_is_named() {
    let database = copy("held");
    for tool in [tool(&database, "held"), verify(&database, "held")] {
        tool.run()
            .assert_one_error(2, &["join_use_nulls = 1", "settings profile"]);
    }
    for (user, name) in [
        ("few_rows", "limit = a number"),
        ("later_rows", "offset"),
        ("more_rows", "extremes = 1"),
        ("masked_rows", "apply_deleted_mask = 0"),
        ("cached", "use_query_cache = 1"),
        ("short_statements", "max_query_size"),
        // Those that each statement states for itself.
        ("block", "max_block_size = 65409"),
        ("few_threads", "max_block_size = 100"),
        ("threads", "max_threads = 1"),
    ] {
        for tool in [tool(&database, user), verify(&database, user)] {
            tool.run().assert_one_error(2, &[name, "settings profile"]);
        }
    }
    let tool = tool(&database, "held_as_it_must_be");
    tool.run().assert_code(0);
}

#[test]
fn an_insert_goes_without_what_the_profile_does_not_let_it_state() {
    for user in ["long_statements", "small_parts"] {
        let database = copy(user);
        let tool = tool(&database, user).args(WITH_ALL.iter().copied());
        tool.run().assert_code(0);
        assert_eq!(events(&database), expected(WITH_ALL), "{user}");
    }
}

#[test]
fn a_user_who_may_only_read_is_told_so_and_can_verify() {
    let database = copy("reads");
    tool(&database, "default").run().assert_code(0);
    let words = ["'only_reads' is read-only", "readonly = 2"];
    tool(&database, "only_reads")
        .arg("--restart")
        .run()
        .assert_one_error(2, &words);
    for tool in [
        tool(&database, "only_reads").arg("--dry-run"),
        command(&database, "only_reads", "plan"),
    ] {
        tool.run().assert_code(0).assert_stderr_contains(words[0]);
    }
    verify(&database, "only_reads").run().assert_code(0);
    verify(&database, "changes_nothing")
        .run()
        .assert_one_error(2, &["readonly = 1", "readonly = 2"]);
}

#[test]
fn a_limit_of_time_that_cannot_be_lifted_is_named_and_not_met_nine_times() {
    let database = copy("short");
    // More than the kernel takes while nobody reads.
    execute(
        &database,
        "INSERT INTO observations SELECT * REPLACE (randomPrintableASCII(20000) AS input) \
         FROM observations FINAL WHERE toYYYYMM(start_time) = 202406",
    );
    slow_down(&database, 1.5);
    let small = ["--batch-size", "100", "--concurrency", "1"];
    let outcome = tool(&database, "short")
        .args(small)
        .env("STREAM_BLOCK_SIZE", "50")
        .run();
    outcome.assert_one_error(1, &["max_execution_time", "--segment-rows"]);
    assert!(outcome.duration < Duration::from_secs(40), "{outcome:?}");
}

#[test]
fn a_limit_of_memory_that_is_too_low_is_named() {
    let database = copy("little_memory");
    let outcome = tool(&database, "little_memory").run();
    outcome.assert_one_error(1, &["max_memory_usage", "raise it"]);
    assert!(outcome.duration < Duration::from_secs(40), "{outcome:?}");
}

#[test]
fn limits_that_cannot_be_lifted_are_named() {
    for (user, setting) in [
        ("few_bytes", "max_bytes_to_read"),
        ("few_columns", "max_columns_to_read"),
        ("few_partitions", "max_partitions_to_read"),
    ] {
        let database = copy(user);
        let outcome = tool(&database, user).run();
        if user == "few_partitions" {
            // The sample has no more.
            outcome
                .assert_code(0)
                .assert_stderr_contains("may not change max_partitions_to_read (1)");
        } else {
            let code = outcome.code.unwrap();
            assert_ne!(code, 0);
            let last = outcome.assert_one_error(code, &[setting, "settings profile"]);
            assert!(!last.contains("another type"), "{last}");
        }
        command(&database, user, "plan")
            .arg("--strict")
            .run()
            .assert_one_error(2, &[&format!("may not change {setting}"), "--strict"]);
    }
}

#[test]
fn what_is_repaired_is_merged_whatever_the_profile_holds() {
    let database = copy("short_repair");
    tool(&database, "default").run().assert_code(0);
    execute(
        &database,
        "DELETE FROM events_full WHERE cityHash64(span_id) % 40 = 0",
    );
    command(&database, "short", "repair")
        .arg("--optimize")
        .run()
        .assert_code(0);
    verify(&database, "default").run().assert_code(0);
}

#[test]
fn a_limit_of_time_that_can_be_lifted_is() {
    let database = copy("limits_lifted");
    slow_down(&database, 1.5);
    tool(&database, "limits").run().assert_code(0);
}
