//! Switches that take one ordering step out of an engine, so that the simulation can prove it would notice.
//!
//! Without the `mutants` feature every switch is a constant `false` and the code behind it disappears.

#[cfg(feature = "mutants")]
mod state {
    use std::cell::Cell;

    thread_local! {
        static ACTIVE: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    /// Switches off the step called `id` on this thread, or none.
    pub fn activate(id: Option<&'static str>) {
        ACTIVE.set(id);
    }

    /// Asked on every path of the engine, and nearly always about nothing.
    #[inline]
    pub(super) fn is_active(id: &str) -> bool {
        ACTIVE.get().is_some_and(|active| active == id)
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
