//! break, wait_break, resume, remove_break: requests are stopped at events, and put in any order.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use cowbell_block::blkdebug::{self, BlkdebugNode};
use cowbell_block::{ErrorKind, Node, Result};

use super::session::Session;
use super::shell::{Done, Failed};
use super::words::c_number;
use crate::flags::Args;
use crate::flags::io::{self as flags, IoCommand};
use crate::json;

/// Does something with the node that the image's breakpoints belong to.
fn with_node<T>(session: &Session<'_>, what: impl FnOnce(&BlkdebugNode) -> Result<T>) -> Result<T> {
    let image = session.image().map(crate::open::Image::node);
    let node: Option<Arc<dyn Node>> = image.and_then(|node| blkdebug::find(&node));
    match node.as_ref().and_then(|node| node.as_any().downcast_ref()) {
        Some(node) => what(node),
        None => Err(ErrorKind::Unsupported.into()),
    }
}

/// The reference prints these to standard output, and the command counts as done.
fn said(session: &Session<'_>, what: &str, result: Result<()>) -> Done {
    result.or_else(|e| session.fail(&format!("{what}: {}\n", cowbell_block::error::errno_text(e.errno()))))
}

pub(super) fn set(session: &Session<'_>, args: &Args) -> Done {
    let [event, tag] = args.operands.as_slice() else { return Err(Failed) };
    let result = with_node(session, |node| node.break_at(event, tag));
    said(session, "Could not set breakpoint", result)
}

pub(super) fn remove(session: &Session<'_>, args: &Args) -> Done {
    let [tag] = args.operands.as_slice() else { return Err(Failed) };
    let result = with_node(session, |node| node.remove_break(tag));
    said(session, &format!("Could not remove breakpoint {tag}"), result)
}

pub(super) async fn resume(session: &Session<'_>, args: &Args) -> Done {
    let [tag] = args.operands.as_slice() else { return Err(Failed) };
    let result = with_node(session, |node| node.resume(tag));
    // It goes on before the next command is looked at.
    session.let_requests_run().await;
    said(session, "Could not resume request", result)
}

/// Waits until a request is suspended, under `cowbell` with a limit if one is given.
pub(super) async fn wait(session: &Session<'_>, command: &IoCommand, args: &Args) -> Done {
    let [tag] = args.operands.as_slice() else { return session.bad_usage(command, "wait_break") };
    let limit = match args.value(&flags::TIMEOUT).map(|word| (word, c_number(word))) {
        None => None,
        Some((_, Some(ms))) => Some(Duration::from_millis(ms)),
        Some((word, None)) => return session.fail(&format!("{word} is not a valid number\n")),
    };
    let mut waiting = match with_node(session, |node| Ok(node.suspension(tag))) {
        Ok(waiting) => waiting,
        // Nothing can ever be suspended there.
        Err(e) => return said(session, "Could not wait for breakpoint", Err(e)),
    };
    if waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
        return Ok(());
    }
    session.flush();
    let sleep = async {
        match limit {
            Some(limit) => cowbell_host::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let first = first(waiting, sleep).await;
    session.tell_finished();
    match first {
        First::Left => Ok(()),
        First::Right => session.fail(&format!("No request was suspended as '{tag}' within the time\n")),
    }
}

enum First {
    Left,
    Right,
}

async fn first(left: impl Future<Output = ()>, right: impl Future<Output = ()>) -> First {
    let (mut left, mut right) = (Box::pin(left), Box::pin(right));
    std::future::poll_fn(move |cx| match (left.as_mut().poll(cx), right.as_mut().poll(cx)) {
        (Poll::Ready(()), _) => Poll::Ready(First::Left),
        (_, Poll::Ready(())) => Poll::Ready(First::Right),
        _ => Poll::Pending,
    })
    .await
}

pub(super) fn state(session: &Session<'_>) -> Done {
    match with_node(session, |node| Ok(node.state())) {
        Ok(state) => {
            session.put(&json::text(&state));
            Ok(())
        }
        Err(e) => said(session, "Could not ask for the state", Err(e)),
    }
}
