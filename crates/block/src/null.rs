//! `null-co` and `null-aio`: nodes that forget what is written and read as nothing in particular.
//!
//! Reads leave the buffers as they are unless `read-zeroes` is on. A latency would need a clock, which this
//! crate does not have; it is refused.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Deserialize;
use serde_json::Value;

use crate::context::OpenContext;
use crate::error::{Error, ErrorKind, Result};
use crate::naming::json_filename;
use crate::node::{Access, ImageInfo, Node, NotOffered};
use crate::options::{BoolOpt, NumberOpt, OptionTree, SizeOpt, parse};
use crate::registry::{Driver, Role};
use crate::request::{BoxFuture, Completion, Extent, ExtentFlags, Mapping, Op, Operation, Request};
use crate::trace::Trace;

/// Length when none is given: 1 GiB, as in the reference.
const SIZE_DEFAULT: u64 = 1 << 30;

/// The driver of [`NullNode`], under one of its two names.
pub struct NullDriver(&'static str);

impl NullDriver {
    /// `null-co`.
    pub const CO: Self = Self("null-co");
    /// `null-aio`: the same, for scripts that name it.
    pub const AIO: Self = Self("null-aio");
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct NullOptions {
    /// Only what [`Driver::parse_filename`] made of the name.
    #[serde(default, rename = "filename")]
    _filename: Option<String>,
    size: Option<SizeOpt>,
    #[serde(default)]
    latency_ns: NumberOpt,
    #[serde(default)]
    read_zeroes: BoolOpt,
}

/// A name that has something after the prefix.
#[derive(Debug, thiserror::Error)]
#[error("The only allowed filename for this driver is '{0}://'")]
struct HasNoNames(&'static str);

impl Driver for NullDriver {
    fn name(&self) -> &'static str {
        self.0
    }

    fn role(&self) -> Role {
        Role::Protocol
    }

    fn parse_filename(&self, name: &str) -> Result<OptionTree> {
        match name.strip_prefix(self.0) {
            Some("://") => Ok(OptionTree::new()),
            _ => Err(Error::new(ErrorKind::InvalidInput, HasNoNames(self.0))),
        }
    }

    fn open(&self, options: OptionTree, cx: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>> {
        let opened = parse::<NullOptions>(self.0, Role::Protocol, options);
        let name = self.0;
        Box::pin(async move {
            let options = opened?;
            if options.latency_ns.0 != 0 {
                return Err(NotOffered { driver: name, what: "latency-ns" }.into());
            }
            let size = options.size.map_or(SIZE_DEFAULT, u64::from);
            let content = if options.read_zeroes.0 { NullContent::Zeroes } else { NullContent::Unspecified };
            let mut node = NullNode::new(size, content);
            node.driver = name;
            node.trace = cx.trace.clone();
            node.read_only = AtomicBool::new(cx.access == Access::ReadOnly);
            Ok(Arc::new(node) as Arc<dyn Node>)
        })
    }
}

/// What reads of a null node return.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum NullContent {
    /// Whatever the buffers held.
    #[default]
    Unspecified,
    /// Zeroes.
    Zeroes,
}

/// Nothing, of a certain length.
pub struct NullNode {
    driver: &'static str,
    len: u64,
    content: NullContent,
    read_only: AtomicBool,
    trace: Option<Trace>,
}

impl NullNode {
    /// A writable null node of `len` bytes.
    pub fn new(len: u64, content: NullContent) -> Self {
        Self { driver: NullDriver::CO.0, len, content, read_only: AtomicBool::new(false), trace: None }
    }

    /// Without a handle on itself a node cannot name itself in a mapping: an equal one stands for it.
    fn twin(&self) -> Arc<dyn Node> {
        Arc::new(Self {
            driver: self.driver,
            len: self.len,
            content: self.content,
            read_only: AtomicBool::new(self.is_read_only()),
            trace: self.trace.clone(),
        })
    }
}

impl Node for NullNode {
    fn submit(&self, mut request: Request) -> Op {
        if request.op.is_mutation() && self.is_read_only() {
            return Op::failed(request.bufs, ErrorKind::ReadOnly);
        }
        match request.op {
            Operation::Flush => return Op::done(request.bufs),
            Operation::Truncate(_) | Operation::VmStateRead | Operation::VmStateWrite => {
                return Op::failed(request.bufs, ErrorKind::Unsupported);
            }
            Operation::Status => {
                let len = request.len.min(self.len.saturating_sub(request.offset));
                let mut flags = ExtentFlags::ALLOCATED;
                flags.set(ExtentFlags::ZERO, self.content == NullContent::Zeroes);
                flags.set(ExtentFlags::DATA, self.content == NullContent::Unspecified);
                flags.set(ExtentFlags::EOF, request.offset.saturating_add(len) >= self.len);
                let map = Some(Mapping { node: self.twin(), offset: request.offset });
                return Op::Done(Completion::extent(Extent { len, flags, map }));
            }
            _ => {}
        }
        if request.op.is_mutation() && request.end() > self.len {
            return Op::failed(request.bufs, ErrorKind::Io);
        }
        if matches!(request.op, Operation::Read) && self.content == NullContent::Zeroes {
            let len = request.bufs.len();
            request.bufs.fill(0, len, 0);
        }
        Op::done(request.bufs)
    }

    fn driver(&self) -> &'static str {
        self.driver
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    fn starts_as_zero(&self) -> bool {
        self.content == NullContent::Zeroes
    }

    fn filename(&self) -> String {
        if self.len == SIZE_DEFAULT && self.content == NullContent::Unspecified {
            return format!("{}://", self.driver);
        }
        let mut own = OptionTree::new();
        own.insert("size".to_owned(), Value::from(self.len));
        if self.content == NullContent::Zeroes {
            own.insert("read-zeroes".to_owned(), Value::from(true));
        }
        json_filename(self.driver, own, &[])
    }

    fn trace(&self) -> Option<Trace> {
        self.trace.clone()
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        let info = ImageInfo {
            format: self.driver,
            virtual_size: self.len,
            actual_size: Some(0),
            ..ImageInfo::default()
        };
        Box::pin(std::future::ready(Ok(info)))
    }

    fn reopen(&self, access: Access) -> BoxFuture<Result<()>> {
        self.read_only.store(access == Access::ReadOnly, Ordering::Relaxed);
        Box::pin(std::future::ready(Ok(())))
    }

    fn close(&self) -> BoxFuture<Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::Buf;
    use crate::naming::ImageName;
    use crate::testing::{Files, now};

    fn open(name: &str) -> Result<Arc<dyn Node>> {
        let cx = Files::default().context().writable();
        now(cx.open_image(&ImageName::from(name), Some("null-co").filter(|_| !name.starts_with("json:"))))
            .map(|opened| opened.node)
    }

    #[test]
    fn names_and_options() {
        let node = open("null-co://").expect("the only name");
        assert_eq!((node.len(), node.filename()), (1 << 30, "null-co://".into()));
        assert!(open("null-co://x").is_err());
        let name = r#"json:{"read-zeroes": true, "driver": "null-co", "size": 512}"#;
        assert_eq!(open(name).expect("options").filename(), name);
        let error = open(r#"json:{"driver":"null-co","latency-ns":5}"#).map(|_| ()).expect_err("no clock");
        assert_eq!(error.to_string(), "null-co does not support latency-ns");
    }

    #[test]
    fn reads_are_zero_only_if_asked_for() {
        for (content, expect) in [(NullContent::Zeroes, 0), (NullContent::Unspecified, 7)] {
            let node = NullNode::new(512, content);
            let read = Request::read(0, Buf::copy_of(&[7; 512]));
            let bufs = now(node.submit(read).finish()).into_bufs().expect("read");
            assert_eq!(bufs.pieces()[0][0], expect);
        }
    }
}
