//! Paths to operations. Segments are decoded one by one, so that an escaped
//! slash (`wd%2Fout.txt`) stays inside its segment.

use kiln_error::{Error, Kind};
use percent_encoding::percent_decode_str;

/// Every operation of the dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Operation {
    ApplicationList,
    ApplicationGet,
    SupportedImages,
    NodeAgentSkus,
    NodeCounts,
    PoolAdd,
    PoolList,
    PoolGet,
    PoolExists,
    PoolDelete,
    PoolPatch,
    PoolUpdateProperties,
    PoolResize,
    PoolStopResize,
    PoolRemoveNodes,
    NodeList,
    NodeGet,
    NodeReboot,
    NodeDisableScheduling,
    NodeEnableScheduling,
    NodeRemoteLogin,
    NodeFileList,
    NodeFileGet,
    NodeFileHead,
    NodeFileDelete,
    JobAdd,
    JobList,
    JobGet,
    JobPatch,
    JobPut,
    JobDelete,
    JobDisable,
    JobEnable,
    JobTerminate,
    JobTaskCounts,
    JobPrepRelease,
    JobScheduleAdd,
    JobScheduleList,
    JobScheduleGet,
    JobScheduleExists,
    JobSchedulePatch,
    JobSchedulePut,
    JobScheduleDelete,
    JobScheduleDisable,
    JobScheduleEnable,
    JobScheduleTerminate,
    JobScheduleJobs,
    TaskAdd,
    TaskAddCollection,
    TaskList,
    TaskGet,
    TaskPut,
    TaskDelete,
    TaskTerminate,
    TaskReactivate,
    TaskSubtasks,
    TaskFileList,
    TaskFileGet,
    TaskFileHead,
    TaskFileDelete,
    /// Known, but not done here; says what it is.
    Unavailable(&'static str),
}

impl Operation {
    /// Whether it is about one job, or its tasks, and nothing else; then the
    /// first variable segment of its path is the job's id.
    pub fn of_one_job(self) -> bool {
        match self {
            Self::JobGet
            | Self::JobPatch
            | Self::JobPut
            | Self::JobDelete
            | Self::JobDisable
            | Self::JobEnable
            | Self::JobTerminate
            | Self::JobTaskCounts
            | Self::JobPrepRelease
            | Self::TaskAdd
            | Self::TaskAddCollection
            | Self::TaskList
            | Self::TaskGet
            | Self::TaskPut
            | Self::TaskDelete
            | Self::TaskTerminate
            | Self::TaskReactivate
            | Self::TaskSubtasks
            | Self::TaskFileList
            | Self::TaskFileGet
            | Self::TaskFileHead
            | Self::TaskFileDelete => true,
            Self::ApplicationList
            | Self::ApplicationGet
            | Self::SupportedImages
            | Self::NodeAgentSkus
            | Self::NodeCounts
            | Self::PoolAdd
            | Self::PoolList
            | Self::PoolGet
            | Self::PoolExists
            | Self::PoolDelete
            | Self::PoolPatch
            | Self::PoolUpdateProperties
            | Self::PoolResize
            | Self::PoolStopResize
            | Self::PoolRemoveNodes
            | Self::NodeList
            | Self::NodeGet
            | Self::NodeReboot
            | Self::NodeDisableScheduling
            | Self::NodeEnableScheduling
            | Self::NodeRemoteLogin
            | Self::NodeFileList
            | Self::NodeFileGet
            | Self::NodeFileHead
            | Self::NodeFileDelete
            | Self::JobAdd
            | Self::JobList
            | Self::JobScheduleAdd
            | Self::JobScheduleList
            | Self::JobScheduleGet
            | Self::JobScheduleExists
            | Self::JobSchedulePatch
            | Self::JobSchedulePut
            | Self::JobScheduleDelete
            | Self::JobScheduleDisable
            | Self::JobScheduleEnable
            | Self::JobScheduleTerminate
            | Self::JobScheduleJobs
            | Self::Unavailable(_) => false,
        }
    }

    /// For metrics and traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unavailable(_) => "Unavailable",
            known => ROUTES.iter().find(|route| route.2 == known).map_or("other", |route| route.3),
        }
    }
}

/// Method and pattern of every route, for tests of who may do what.
pub fn routes() -> impl Iterator<Item = (&'static str, &'static str)> {
    ROUTES.iter().map(|(method, pattern, ..)| (*method, *pattern))
}

use Operation as O;

/// Method, path (`*` is one segment, `**` the rest), operation, name.
const ROUTES: &[(&str, &str, Operation, &str)] = &[
    ("GET", "applications", O::ApplicationList, "ApplicationList"),
    ("GET", "applications/*", O::ApplicationGet, "ApplicationGet"),
    ("GET", "supportedimages", O::SupportedImages, "SupportedImages"),
    ("GET", "nodeagentskus", O::NodeAgentSkus, "NodeAgentSkus"),
    ("GET", "nodecounts", O::NodeCounts, "NodeCounts"),
    ("POST", "pools", O::PoolAdd, "PoolAdd"),
    ("GET", "pools", O::PoolList, "PoolList"),
    ("GET", "pools/*", O::PoolGet, "PoolGet"),
    ("HEAD", "pools/*", O::PoolExists, "PoolExists"),
    ("DELETE", "pools/*", O::PoolDelete, "PoolDelete"),
    ("PATCH", "pools/*", O::PoolPatch, "PoolPatch"),
    ("POST", "pools/*/updateproperties", O::PoolUpdateProperties, "PoolUpdateProperties"),
    ("POST", "pools/*/resize", O::PoolResize, "PoolResize"),
    ("POST", "pools/*/stopresize", O::PoolStopResize, "PoolStopResize"),
    ("POST", "pools/*/removenodes", O::PoolRemoveNodes, "PoolRemoveNodes"),
    ("GET", "pools/*/nodes", O::NodeList, "NodeList"),
    ("GET", "pools/*/nodes/*", O::NodeGet, "NodeGet"),
    ("POST", "pools/*/nodes/*/reboot", O::NodeReboot, "NodeReboot"),
    ("POST", "pools/*/nodes/*/disablescheduling", O::NodeDisableScheduling, "NodeDisableScheduling"),
    ("POST", "pools/*/nodes/*/enablescheduling", O::NodeEnableScheduling, "NodeEnableScheduling"),
    ("GET", "pools/*/nodes/*/remoteloginsettings", O::NodeRemoteLogin, "NodeRemoteLogin"),
    ("GET", "pools/*/nodes/*/rdp", O::NodeRemoteLogin, "NodeRemoteLogin"),
    ("GET", "pools/*/nodes/*/files", O::NodeFileList, "NodeFileList"),
    ("GET", "pools/*/nodes/*/files/**", O::NodeFileGet, "NodeFileGet"),
    ("HEAD", "pools/*/nodes/*/files/**", O::NodeFileHead, "NodeFileHead"),
    ("DELETE", "pools/*/nodes/*/files/**", O::NodeFileDelete, "NodeFileDelete"),
    ("POST", "jobs", O::JobAdd, "JobAdd"),
    ("GET", "jobs", O::JobList, "JobList"),
    ("GET", "jobs/*", O::JobGet, "JobGet"),
    ("PATCH", "jobs/*", O::JobPatch, "JobPatch"),
    ("PUT", "jobs/*", O::JobPut, "JobPut"),
    ("DELETE", "jobs/*", O::JobDelete, "JobDelete"),
    ("POST", "jobs/*/disable", O::JobDisable, "JobDisable"),
    ("POST", "jobs/*/enable", O::JobEnable, "JobEnable"),
    ("POST", "jobs/*/terminate", O::JobTerminate, "JobTerminate"),
    ("GET", "jobs/*/taskcounts", O::JobTaskCounts, "JobTaskCounts"),
    ("GET", "jobs/*/jobpreparationandreleasetaskstatus", O::JobPrepRelease, "JobPrepRelease"),
    ("POST", "jobschedules", O::JobScheduleAdd, "JobScheduleAdd"),
    ("GET", "jobschedules", O::JobScheduleList, "JobScheduleList"),
    ("GET", "jobschedules/*", O::JobScheduleGet, "JobScheduleGet"),
    ("HEAD", "jobschedules/*", O::JobScheduleExists, "JobScheduleExists"),
    ("PATCH", "jobschedules/*", O::JobSchedulePatch, "JobSchedulePatch"),
    ("PUT", "jobschedules/*", O::JobSchedulePut, "JobSchedulePut"),
    ("DELETE", "jobschedules/*", O::JobScheduleDelete, "JobScheduleDelete"),
    ("POST", "jobschedules/*/disable", O::JobScheduleDisable, "JobScheduleDisable"),
    ("POST", "jobschedules/*/enable", O::JobScheduleEnable, "JobScheduleEnable"),
    ("POST", "jobschedules/*/terminate", O::JobScheduleTerminate, "JobScheduleTerminate"),
    ("GET", "jobschedules/*/jobs", O::JobScheduleJobs, "JobScheduleJobs"),
    ("POST", "jobs/*/tasks", O::TaskAdd, "TaskAdd"),
    ("POST", "jobs/*/addtaskcollection", O::TaskAddCollection, "TaskAddCollection"),
    ("GET", "jobs/*/tasks", O::TaskList, "TaskList"),
    ("GET", "jobs/*/tasks/*", O::TaskGet, "TaskGet"),
    ("PUT", "jobs/*/tasks/*", O::TaskPut, "TaskPut"),
    ("DELETE", "jobs/*/tasks/*", O::TaskDelete, "TaskDelete"),
    ("POST", "jobs/*/tasks/*/terminate", O::TaskTerminate, "TaskTerminate"),
    ("POST", "jobs/*/tasks/*/reactivate", O::TaskReactivate, "TaskReactivate"),
    ("GET", "jobs/*/tasks/*/subtasksinfo", O::TaskSubtasks, "TaskSubtasks"),
    ("GET", "jobs/*/tasks/*/files", O::TaskFileList, "TaskFileList"),
    ("GET", "jobs/*/tasks/*/files/**", O::TaskFileGet, "TaskFileGet"),
    ("HEAD", "jobs/*/tasks/*/files/**", O::TaskFileHead, "TaskFileHead"),
    ("DELETE", "jobs/*/tasks/*/files/**", O::TaskFileDelete, "TaskFileDelete"),
    ("POST", "pools/*/disableautoscale", O::Unavailable("disable automatic scaling"), ""),
    ("POST", "pools/*/enableautoscale", O::Unavailable("enable automatic scaling"), ""),
    ("POST", "pools/*/evaluateautoscale", O::Unavailable("evaluate an automatic scaling formula"), ""),
    ("POST", "pools/*/upgradeos", O::Unavailable("upgrade the operating system of a pool"), ""),
    ("GET", "poolusagemetrics", O::Unavailable("pool usage metrics"), ""),
    ("GET", "lifetimepoolstats", O::Unavailable("lifetime statistics of pools"), ""),
    ("GET", "lifetimejobstats", O::Unavailable("lifetime statistics of jobs"), ""),
    ("POST", "pools/*/nodes/*/users", O::Unavailable("add a user to a node"), ""),
    ("PUT", "pools/*/nodes/*/users/*", O::Unavailable("change a user of a node"), ""),
    ("DELETE", "pools/*/nodes/*/users/*", O::Unavailable("delete a user of a node"), ""),
    ("POST", "pools/*/nodes/*/start", O::Unavailable("start a deallocated node"), ""),
    ("POST", "pools/*/nodes/*/reimage", O::Unavailable("reimage a node"), ""),
    ("POST", "pools/*/nodes/*/deallocate", O::Unavailable("deallocate a node"), ""),
    ("POST", "pools/*/nodes/*/uploadbatchservicelogs", O::Unavailable("upload the logs of a node"), ""),
    ("GET", "pools/*/nodes/*/extensions", O::Unavailable("extensions of a node"), ""),
    ("GET", "pools/*/nodes/*/extensions/*", O::Unavailable("extensions of a node"), ""),
    ("GET", "certificates", O::Unavailable("certificates"), ""),
    ("POST", "certificates", O::Unavailable("certificates"), ""),
];
/// `certificates(thumbprintAlgorithm=...,thumbprint=...)` is one segment.
const ONE_CERTIFICATE: &str = "certificates(";

/// The operation of a request and the decoded segments at its stars.
///
/// # Errors
/// `InvalidUri` for an unknown path, `UnsupportedHttpVerb` for a known one with
/// another method.
pub fn route(method: &str, path: &str) -> Result<(Operation, Vec<String>), Error> {
    let segments = split(path).ok_or_else(|| invalid_uri(path))?;
    if segments.first().is_some_and(|first| first.starts_with(ONE_CERTIFICATE)) {
        return Ok((O::Unavailable("certificates"), Vec::new()));
    }
    let mut other_method = false;
    for (verb, pattern, operation, _) in ROUTES {
        if let Some(arguments) = matches(pattern, &segments) {
            if *verb == method {
                return Ok((*operation, arguments));
            }
            other_method = true;
        }
    }
    if other_method {
        return Err(Error::new(
            Kind::InvalidArgument,
            "UnsupportedHttpVerb",
            format!("{method} is not possible for {path}"),
        ));
    }
    Err(invalid_uri(path))
}

fn invalid_uri(path: &str) -> Error {
    let short: String = path.chars().take(200).collect();
    Error::new(Kind::InvalidArgument, "InvalidUri", format!("there is nothing at {short}"))
}

fn split(path: &str) -> Option<Vec<String>> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    path.split('/')
        .map(|segment| percent_decode_str(segment).decode_utf8().ok().map(std::borrow::Cow::into_owned))
        .collect()
}

fn matches(pattern: &str, segments: &[String]) -> Option<Vec<String>> {
    let mut arguments = Vec::new();
    let mut rest = segments.iter();
    for expected in pattern.split('/') {
        match expected {
            // Clients escape a file's whole path into one segment, or not.
            "**" => {
                let tail: Vec<&str> = rest.by_ref().map(String::as_str).collect();
                if tail.is_empty() {
                    return None;
                }
                arguments.push(tail.join("/"));
            }
            "*" => arguments.push(rest.next().filter(|segment| !segment.is_empty())?.clone()),
            name => {
                rest.next().filter(|segment| segment.eq_ignore_ascii_case(name))?;
            }
        }
    }
    rest.next().is_none().then_some(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(method: &str, path: &str) -> (Operation, Vec<String>) {
        route(method, path).unwrap()
    }

    #[test]
    fn paths_lead_to_operations() {
        assert_eq!(ok("POST", "/pools"), (O::PoolAdd, vec![]));
        assert_eq!(ok("GET", "/Pools/p1/"), (O::PoolGet, vec!["p1".into()]));
        assert_eq!(ok("GET", "/jobs/s:job-1").1, ["s:job-1"]);
        assert_eq!(
            ok("GET", "/jobs/j/tasks/t/files/wd%2Fa%20b.txt"),
            (O::TaskFileGet, vec!["j".into(), "t".into(), "wd/a b.txt".into()])
        );
        assert_eq!(ok("GET", "/jobs/j/tasks/t/files/wd/a%20b.txt").1[2], "wd/a b.txt");
        assert_eq!(ok("GET", "/pools/p/nodes/n/files/%2Fstartup%2Fstderr.txt").1[2], "/startup/stderr.txt");
        assert_eq!(ok("GET", "/jobs/j/tasks/t/files").0, O::TaskFileList);
        assert_eq!(ok("POST", "/jobschedules").0, O::JobScheduleAdd);
        assert_eq!(ok("GET", "/jobschedules/s/jobs"), (O::JobScheduleJobs, vec!["s".into()]));
        assert!(matches!(ok("DELETE", "/certificates(thumbprintAlgorithm=sha1,thumbprint=ab)").0, O::Unavailable(_)));
    }

    #[test]
    fn other_paths_and_methods_are_told_apart() {
        for path in ["/", "/nothing", "/pools/p/unknown", "/pools//nodes", "/jobs/%ff", ""] {
            assert_eq!(route("GET", path).unwrap_err().reason(), "InvalidUri", "{path}");
        }
        assert_eq!(route("PUT", "/pools/p").unwrap_err().reason(), "UnsupportedHttpVerb");
    }

    #[test]
    fn every_operation_has_a_name() {
        for (_, path, operation, name) in ROUTES {
            match operation {
                O::Unavailable(_) => assert_eq!(operation.name(), "Unavailable"),
                known => assert_eq!((known.name(), format!("{known:?}")), (*name, (*name).to_owned()), "{path}"),
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_path_is_too_strange(path in "(/[a-z%0-9\\PC]{0,12}){0,6}", tail in ".*") {
            let _ = route("GET", &path);
            let _ = route("GET", &tail);
        }
    }
}
