//! Every contract of Kiln, generated from `proto/kiln`.
//!
//! One module per package and version: `kiln.job.v1` is [`job::v1`]. Generated
//! types stop at the `api/` of a service and at the bus adapter; inside, each
//! service has its own. [`time`] converts instants and durations.
#![allow(missing_docs, clippy::all, clippy::unwrap_used, rust_2018_idioms)]

pub mod time;

macro_rules! package {
    ($module:ident, $package:literal) => {
        pub mod $module {
            pub mod v1 {
                tonic::include_proto!($package);
            }
        }
    };
}

package!(common, "kiln.common.v1");
package!(storage, "kiln.storage.v1");
package!(pool, "kiln.pool.v1");
package!(job, "kiln.job.v1");
package!(monitor, "kiln.monitor.v1");
package!(gateway, "kiln.gateway.v1");
package!(events, "kiln.events.v1");

/// The descriptors of all packages, for reflection and for JSON output.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kiln.fds"));
