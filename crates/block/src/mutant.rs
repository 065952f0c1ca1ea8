//! Switches that take one ordering step out of an engine, so that the simulation can prove it would notice.
//!
//! Without the `mutants` feature every switch is a constant `false` and the code behind it disappears.

#[cfg(feature = "mutants")]
mod state {
    use std::cell::RefCell;

    thread_local! {
        static ACTIVE: RefCell<Option<String>> = const { RefCell::new(None) };
    }

    /// Switches off the step called `id` on this thread, or none.
    pub fn activate(id: Option<&str>) {
        ACTIVE.set(id.map(str::to_owned));
    }

    pub(super) fn is_active(id: &str) -> bool {
        ACTIVE.with_borrow(|active| active.as_deref() == Some(id))
    }
}

#[cfg(feature = "mutants")]
pub use state::activate;

/// Whether the step called `id` is switched off on this thread.
#[inline(always)]
pub fn is_active(id: &str) -> bool {
    #[cfg(feature = "mutants")]
    return state::is_active(id);
    #[cfg(not(feature = "mutants"))]
    {
        let _ = id;
        false
    }
}
