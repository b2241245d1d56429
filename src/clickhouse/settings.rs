//! Every setting that the meaning of a statement depends on, in one place: if a user's profile changes
//! one, a statement reads other rows, other values or another format.
//!
//! The list comes from going through `system.settings` of ClickHouse 26.7 (1,490 settings) and asking of
//! each whether it changes what a SELECT returns, what an INSERT writes, or the format of either.
//! Settings that only make a statement faster or slower, or let the server refuse it, are left to the
//! operator. The values are the server's defaults, except where a reason is given.
//!
//! A server that does not know a setting lacks the feature too, so the setting is not sent there (the
//! oldest supported version is 25.12). If the profile pins one to another value, the run ends and names it.

use std::sync::{Arc, OnceLock};

/// Settings that decide what a statement means.
pub(super) const MEANING: &[(&str, &str)] = &[
    // The language. `compatibility` restores the defaults of an older version.
    ("dialect", "clickhouse"),
    ("compatibility", ""),
    ("enable_analyzer", "1"),
    (
        "analyzer_compatibility_apply_final_to_all_joined_tables",
        "0",
    ),
    (
        "analyzer_compatibility_join_using_top_level_identifier",
        "0",
    ),
    ("analyzer_compatibility_prefer_alias_over_subcolumn", "0"),
    ("prefer_column_name_to_alias", "0"),
    ("enable_positional_arguments", "1"),
    ("enable_global_with_statement", "1"),
    ("enable_unaligned_array_join", "0"),
    ("enable_named_columns_in_function_tuple", "0"),
    ("asterisk_include_materialized_columns", "0"),
    ("asterisk_include_alias_columns", "0"),
    ("asterisk_include_virtual_columns", "0"),
    ("union_default_mode", ""),
    ("intersect_default_mode", "ALL"),
    ("except_default_mode", "ALL"),
    // Joins, groups and missing values.
    ("join_use_nulls", "0"),
    ("join_default_strictness", "ALL"),
    ("join_any_take_last_row", "0"),
    ("any_join_distinct_right_table_keys", "0"),
    ("single_join_prefer_left_table", "1"),
    ("group_by_use_nulls", "0"),
    ("transform_null_in", "0"),
    ("aggregate_functions_null_for_empty", "0"),
    ("empty_result_for_aggregation_by_empty_set", "0"),
    (
        "empty_result_for_aggregation_by_constant_keys_on_empty_set",
        "1",
    ),
    ("count_distinct_implementation", "uniqExact"),
    ("short_circuit_function_evaluation", "enable"),
    ("least_greatest_legacy_null_behavior", "0"),
    // Times: a column without a time zone has the server's, which also made its partitions and sorting
    // key.
    ("session_timezone", ""),
    ("enable_extended_results_for_datetime_functions", "0"),
    ("function_date_trunc_return_type_behavior", "0"),
    ("cast_string_to_date_time_mode", "basic"),
    ("date_time_overflow_behavior", "ignore"),
    ("date_time_output_format", "simple"),
    (
        "date_time_64_output_format_cut_trailing_zeros_align_to_groups_of_thousands",
        "0",
    ),
    // Conversion to text and to other types.
    ("cast_keep_nullable", "0"),
    ("decimal_check_overflow", "1"),
    ("bool_true_representation", "true"),
    ("bool_false_representation", "false"),
    ("output_format_decimal_trailing_zeros", "0"),
    ("output_format_float_precision", "0"),
    ("output_format_trim_fixed_string", "0"),
    ("output_format_json_escape_forward_slashes", "1"),
    ("output_format_json_map_as_array_of_tuples", "0"),
    ("output_format_json_named_tuples_as_objects", "1"),
    ("output_format_json_quote_64bit_floats", "0"),
    ("output_format_json_quote_64bit_integers", "0"),
    ("output_format_json_quote_decimals", "0"),
    ("output_format_json_quote_denormals", "0"),
    ("output_format_json_skip_null_value_in_named_tuples", "0"),
    ("output_format_json_validate_utf8", "0"),
    ("json_type_escape_dots_in_keys", "0"),
    // Which rows are visible.
    ("final", "0"),
    ("do_not_merge_across_partitions_select_final", "0"),
    ("use_skip_indexes_if_final_exact_mode", "1"),
    ("apply_prewhere_after_final", "0"),
    ("defer_partition_pruning_after_final", "1"),
    ("apply_deleted_mask", "1"),
    ("apply_patch_parts", "1"),
    ("additional_table_filters", "{}"),
    ("additional_result_filter", ""),
    ("limit", "0"),
    ("offset", "0"),
    ("extremes", "0"),
    ("enforce_strict_identifier_format", "0"),
    ("make_distributed_plan", "0"),
    ("optimize_using_constraints", "0"),
    ("use_query_cache", "0"),
    ("inject_random_order_for_select_without_order_by", "0"),
    ("discard_query_data", "0"),
    ("partial_result_on_first_cancel", "0"),
    ("skip_unavailable_shards", "0"),
    ("enable_parallel_replicas", "0"),
    ("ignore_cold_parts_seconds", "0"),
    ("prefer_warmed_unmerged_parts_seconds", "0"),
    ("force_index_by_date", "0"),
    ("force_primary_key", "0"),
    ("force_optimize_projection", "0"),
    // A limit that ends a statement silently loses rows.
    ("read_overflow_mode", "throw"),
    ("read_overflow_mode_leaf", "throw"),
    ("result_overflow_mode", "throw"),
    ("timeout_overflow_mode", "throw"),
    ("timeout_overflow_mode_leaf", "throw"),
    ("sort_overflow_mode", "throw"),
    ("group_by_overflow_mode", "throw"),
    ("distinct_overflow_mode", "throw"),
    ("set_overflow_mode", "throw"),
    ("join_overflow_mode", "throw"),
    ("transfer_overflow_mode", "throw"),
    // Transfer format.
    ("output_format_native_encode_types_in_binary_format", "0"),
    (
        "output_format_native_use_flattened_dynamic_and_json_serialization",
        "0",
    ),
    ("output_format_native_write_json_as_string", "0"),
    ("output_format_binary_encode_types_in_binary_format", "0"),
    ("output_format_binary_write_json_as_string", "0"),
    ("low_cardinality_allow_in_native_format", "1"),
    ("http_write_exception_in_output_format", "0"),
    ("http_wait_end_of_query", "0"),
    ("send_progress_in_http_headers", "0"),
    // What an INSERT writes. async_insert is on by default since 26.1; the answer would come before the
    // rows are written.
    ("async_insert", "0"),
    ("wait_for_async_insert", "1"),
    // With it, the server merges the rows of each insert, which copies them all (a fifth of all
    // processor time, measured) to remove equal keys. Merges and FINAL do that anyway.
    ("optimize_on_insert", "0"),
    // We avoid duplicates ourselves, by the keys already in the target. A replicated table would
    // silently drop a part equal to an earlier one, even after its rows were deleted. From 26 on, the
    // second and third setting decide, whatever the first says.
    ("insert_deduplicate", "0"),
    ("deduplicate_insert", "disable"),
    ("deduplicate_insert_select", "disable"),
    ("deduplicate_blocks_in_dependent_materialized_views", "0"),
    ("insert_deduplication_token", ""),
    // Otherwise a column that the table does not have is silently dropped.
    ("input_format_skip_unknown_fields", "0"),
    ("input_format_native_allow_types_conversion", "1"),
    ("input_format_native_decode_types_in_binary_format", "0"),
    // The defaults of columns that we do not send depend on columns that we do.
    ("input_format_defaults_for_omitted_fields", "1"),
    ("input_format_force_null_for_omitted_fields", "0"),
    ("input_format_null_as_default", "1"),
    ("insert_null_as_default", "1"),
    ("input_format_allow_errors_num", "0"),
    ("input_format_allow_errors_ratio", "0"),
    // Metadata in a JSON column: strings stay strings, whatever they look like.
    ("input_format_try_infer_dates", "0"),
    ("input_format_try_infer_datetimes", "0"),
    ("type_json_skip_duplicated_paths", "1"),
    ("type_json_skip_invalid_typed_paths", "0"),
    // Otherwise rows that a view fails to write are silently lost.
    ("materialized_views_ignore_errors", "0"),
    ("ignore_materialized_views_with_dropped_target_table", "0"),
    // Statements contain the ids they ask for.
    (MAX_QUERY_SIZE, "268435456"),
    // Distributed tables: write into the table itself, before the answer.
    ("insert_distributed_sync", "1"),
    ("insert_shard_id", "0"),
];

/// How long a statement may be.
pub(super) const MAX_QUERY_SIZE: &str = "max_query_size";

/// Maximum bytes of an insert's statement: the server's default. The server also buffers this much of the
/// body, since the statement could continue there (measured on 26.7 for an insert of 150 MB: 385 MiB with
/// the size that other statements are allowed, 30 MiB with this one).
pub(super) const QUERY_SIZE_OF_INSERTS: &str = "262144";

/// The only preference that is not a limit.
pub(super) const COMPRESSION_LEVEL: &str = "http_zlib_compression_level";

/// Settings that we change if the profile allows it. Mostly limits on a statement, which we lift: a run
/// takes long and reads much on purpose, and bounds its memory itself.
pub(super) const PREFERENCES: &[(&str, &str)] = &[
    // Applies to LZ4 too. From 3 on, the default, the server uses LZ4HC, which takes five times as
    // long.
    (COMPRESSION_LEVEL, "1"),
    ("max_execution_time", "0"),
    ("max_execution_time_leaf", "0"),
    ("max_estimated_execution_time", "0"),
    ("min_execution_speed", "0"),
    ("min_execution_speed_bytes", "0"),
    ("max_rows_to_read", "0"),
    ("max_bytes_to_read", "0"),
    ("max_rows_to_read_leaf", "0"),
    ("max_bytes_to_read_leaf", "0"),
    ("max_result_rows", "0"),
    ("max_result_bytes", "0"),
    ("max_rows_to_sort", "0"),
    ("max_bytes_to_sort", "0"),
    ("max_rows_to_group_by", "0"),
    ("max_rows_in_distinct", "0"),
    ("max_bytes_in_distinct", "0"),
    ("max_rows_in_set", "0"),
    ("max_bytes_in_set", "0"),
    ("max_rows_in_join", "0"),
    ("max_bytes_in_join", "0"),
    ("max_columns_to_read", "0"),
    ("max_temporary_columns", "0"),
    ("max_temporary_non_const_columns", "0"),
    ("max_partitions_to_read", "-1"),
];

/// Settings that lower the priority of our statements' threads: they get the processor time that others
/// leave, which costs nothing on an idle server. Without `CAP_SYS_NICE` for the server they have no effect.
pub(super) const GIVING_WAY: &[(&str, &str)] = &[
    ("os_threads_nice_value_query", "19"),
    ("os_threads_nice_value_materialized_view", "19"),
];

/// Settings of single statements, with the smallest and largest value: how much to read at once, and when
/// to use the server's disk.
pub(super) const OF_STATEMENTS: &[(&str, &[&str])] = &[
    ("max_block_size", &["16", "65536"]),
    ("preferred_block_size_bytes", &["65536", "16777216"]),
    ("max_bytes_before_external_group_by", &["67108864"]),
    ("max_bytes_before_external_sort", &["67108864"]),
    ("use_query_condition_cache", &["0"]),
    ("optimize_move_to_prewhere_if_final", &["0"]),
    ("optimize_read_in_order", &["1"]),
    ("split_intersecting_parts_ranges_into_layers_final", &["0"]),
    ("join_algorithm", &["hash"]),
    ("max_threads", &["2"]),
    ("max_ast_elements", &["10000000"]),
    ("max_expanded_ast_elements", &["10000000"]),
    ("cancel_http_readonly_queries_on_client_close", &["1"]),
];

/// Settings of an insert, sent if the profile allows it, with the smallest and largest value: how much the
/// server gathers for a part, how much of the body it may read as part of the statement, and how much memory
/// and how many threads it may take.
pub(super) const OF_INSERTS: &[(&str, &[&str])] = &[
    (MAX_QUERY_SIZE, &[QUERY_SIZE_OF_INSERTS]),
    ("min_insert_block_size_rows", &["1", "10000000"]),
    ("min_insert_block_size_bytes", &["1", "4294967296"]),
    ("max_memory_usage", &["268435456"]),
    ("max_insert_threads", &["1", "16"]),
];

/// The settings of all statements of a connection, once the server has been asked which it knows.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    pub(super) known: Arc<OnceLock<Known>>,
}

/// The outcome of asking the server for its settings.
#[derive(Debug)]
pub(super) struct Known {
    /// Sent with every statement.
    pub(super) sent: Vec<(&'static str, &'static str)>,
    /// Limits that the profile pins, with their values.
    pub(super) held_limits: Vec<(&'static str, String)>,
    /// Settings that an insert may send.
    pub(super) of_inserts: Vec<&'static str>,
}

impl Settings {
    /// Settings to send with every statement.
    pub(super) fn all(&self) -> &[(&'static str, &'static str)] {
        self.known.get().map_or(&[], |known| &known.sent)
    }

    /// Limits that could not be lifted.
    pub(super) fn held_limits(&self) -> &[(&'static str, String)] {
        self.known.get().map_or(&[], |known| &known.held_limits)
    }

    /// Whether an insert may send a setting.
    pub(super) fn may_insert_with(&self, name: &str) -> bool {
        (self.known.get()).is_none_or(|known| known.of_inserts.contains(&name))
    }

    /// Whether the server has been asked.
    pub(super) fn are_known(&self) -> bool {
        self.known.get().is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_setting_is_stated_twice() {
        let all = MEANING.iter().chain(PREFERENCES).chain(GIVING_WAY);
        let all = all.map(|setting| setting.0);
        let of_inserts = OF_INSERTS.iter().map(|setting| setting.0);
        // Inserts have a size of their own.
        let of_inserts = of_inserts.filter(|name| *name != MAX_QUERY_SIZE);
        let all = all.chain(OF_STATEMENTS.iter().map(|setting| setting.0));
        let all = all.chain(of_inserts);
        let names: BTreeSet<&str> = all.clone().collect();
        assert_eq!(names.len(), all.count());
    }

    /// Proxies take 8 KiB of a request's first line, with the statement of an insert in it.
    #[test]
    fn all_settings_together_leave_room_for_a_statement() {
        let all = MEANING.iter().chain(PREFERENCES).chain(GIVING_WAY);
        let bytes: usize = all.map(|(name, value)| name.len() + value.len() + 2).sum();
        assert!(bytes < 5_000, "{bytes}");
    }
}
