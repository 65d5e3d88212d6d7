//! The cases: name, body, in the order in which they run. Bodies are grouped by what they are about.

mod confinement;
mod filesystem;
mod life;
mod pod;
mod streams;
mod user_namespace;
mod volumes;

use std::pin::Pin;

use crate::fixture::Fixture;

type Case = fn(Fixture) -> Pin<Box<dyn Future<Output = ()>>>;

macro_rules! cases {
    ($(#[$about:meta])* $list:ident: $($group:ident { $($name:ident),* $(,)? })*) => {
        $(#[$about])*
        pub(crate) const $list: &[(&str, Case)] =
            &[$($((concat!(stringify!($group), "::", stringify!($name)), |fixture| Box::pin($group::$name(fixture)))),*),*];
    };
}

cases! {
    /// Those of a pod without a user namespace.
    CASES:
    life {
        output_and_exit_code_come_back,
        a_missing_program_is_an_exec_error,
        exec_runs_beside_the_container,
        exec_errors_carry_the_errno,
        signals_end_containers,
        an_id_means_one_container,
        a_failed_creation_leaves_nothing,
        a_created_container_can_be_removed,
        watchers_see_a_snapshot_and_then_exits,
        termination_messages_come_back,
        orphans_are_reaped,
        a_hundred_containers_leave_nothing,
    }
    filesystem {
        standard_mounts_are_there,
        a_read_only_root_is_read_only,
        masked_and_read_only_paths,
        links_do_not_lead_out,
        file_volumes_are_shared_and_read_only,
        tmpfs_volumes_are_shared,
        writes_stay_in_the_container,
        the_working_directory_is_made,
        mounts_that_cannot_be_are_refused,
    }
    volumes {
        updated_files_take_the_place_of_the_old_ones,
        read_only_means_submounts_only_when_asked,
        a_lasting_volume_survives_its_containers,
        an_image_is_a_read_only_volume,
    }
    confinement {
        users_are_resolved_in_the_container,
        capabilities_are_what_was_asked,
        privileges_cannot_be_regained,
        seccomp_filters_calls,
        limits_are_set,
        the_stage_cannot_be_looked_into,
        devices_are_filtered,
        memory_limits_kill_and_say_so,
        cgroup_limits_are_written,
        less_memory_than_is_used_is_refused,
        a_divided_cgroup_takes_execs,
    }
    streams {
        stdin_reaches_the_process_and_ends,
        without_stdin_there_is_none,
        a_terminal_is_one,
        a_terminal_can_be_resized,
        exec_gets_a_terminal_of_its_own,
        a_user_can_open_its_stdout_again,
        a_flood_of_output_arrives_whole,
    }
    pod {
        host_name_and_dns_files,
        addresses_are_set,
        a_container_is_alone_in_its_pid_namespace,
        the_pod_can_share_a_pid_namespace,
        a_container_can_join_anothers_pid_namespace,
        shared_memory_is_the_pods,
        stats_have_numbers,
        another_configuration_is_refused,
        info_names_the_kernel,
        the_clock_was_set,
    }
}

cases! {
    /// Those of a pod with one: an agent is configured once.
    IN_USER_NAMESPACE:
    user_namespace {
        root_is_somebody_else_outside,
        network_and_host_name_belong_to_it,
        execs_and_terminals_are_in_it,
        volumes_show_its_ids,
        what_was_mounted_stays,
        privileged_is_over_the_pod_alone,
        users_that_are_not_mapped_are_refused,
        nothing_is_left,
    }
}
