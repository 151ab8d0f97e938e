//! For whom an answer is written: under which address the client reaches this
//! server, and which version of the dialect it speaks.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::version::Version;

/// What stays as it is in one segment of a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b':');

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Scheme and host, for example `http://127.0.0.1:7450`.
    pub base: &'a str,
    /// Of the request.
    pub version: Version,
}

impl View<'_> {
    /// The URL of a resource; each segment is escaped.
    pub fn url(&self, segments: &[&str]) -> String {
        let mut url = self.base.to_owned();
        for segment in segments {
            url.push('/');
            url.extend(utf8_percent_encode(segment, SEGMENT));
        }
        url
    }

    /// The URL of a file below `parent`: slashes of its path stay slashes.
    pub fn file_url(&self, parent: &[&str], path: &str) -> String {
        let mut url = self.url(parent);
        url.push_str("/files");
        for segment in path.split('/') {
            url.push('/');
            url.extend(utf8_percent_encode(segment, SEGMENT));
        }
        url
    }
}

/// A text as it stands in a header that is escaped whole.
pub fn escape_whole(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT_WHOLE).to_string()
}

const SEGMENT_WHOLE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_escaped() {
        let view = View { base: "http://h:1", version: Version::LATEST };
        assert_eq!(view.url(&["jobs", "s:job-1", "tasks", "a b"]), "http://h:1/jobs/s:job-1/tasks/a%20b");
        assert_eq!(view.file_url(&["pools", "p", "nodes", "n"], "wd/a b"), "http://h:1/pools/p/nodes/n/files/wd/a%20b");
        assert_eq!(escape_whole("http://h:1/x"), "http%3A%2F%2Fh%3A1%2Fx");
    }
}
