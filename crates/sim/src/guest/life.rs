//! The end of a node, and another one over the same file.

use std::rc::Rc;
use std::sync::Arc;

use cowbell_block::node::Node;
use cowbell_block::request::Request;

use super::Guest;
use crate::judge::Failure;

impl Guest {
    pub(super) async fn reopen(&self) {
        let node = self.node.borrow_mut().take();
        if let Some(node) = node {
            self.close_node(node).await;
        }
        if self.has_failed() {
            return;
        }
        let opened = self.subject.open(self.files(), &self.config).await;
        match opened {
            Ok(node) => *self.node.borrow_mut() = Some(node),
            Err(_) if self.was_faulted() => self.lost.set(true),
            Err(error) => self.fail(Failure::new("O5", format!("the image does not open again: {error}"))),
        }
    }

    /// Closes the image. A close that succeeds has flushed, unless a flush just before it failed. Returns
    /// whether it did.
    pub(super) async fn close_node(&self, node: Arc<dyn Node>) -> bool {
        let start = self.instant();
        let mut usable = true;
        if self.was_faulted() {
            usable = node.submit(Request::flush()).finish().await.result.is_ok();
        }
        let closed = node.close().await;
        if let Err(what) = self.subject.is_quiet(&*node) {
            self.fail(Failure::new("O7", what));
        }
        if let Err(error) = &closed {
            self.excuse("close", error);
        }
        let now = self.instant();
        // What was abandoned has happened by now, or never will.
        for ticket in self.abandoned.borrow_mut().drain(..) {
            self.model.borrow_mut().fail(now, ticket);
        }
        if closed.is_err() || !usable {
            self.model.borrow_mut().lost();
            self.state.borrow_mut().lost();
            self.lost.set(true);
            return false;
        }
        self.flushed(now, start);
        true
    }

    /// Reads the whole disk, then closes the image. The answer says whether the close succeeded.
    pub async fn finish(self: Rc<Self>) -> bool {
        let Some(node) = self.node.borrow().clone() else { return false };
        if !self.has_failed() {
            self.read_all(&*node).await;
        }
        self.node.borrow_mut().take();
        self.close_node(node).await
    }
}
