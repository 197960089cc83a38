//! Byte plans of jobs.
use moenn_sys as sys;

use crate::error::{check, sized};
use crate::Result;

/// Exact device bytes of a job, by category.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// Parameters in all.
    pub parameters: u64,
    /// Parameters that multiply one token.
    pub active_parameters: u64,
    /// The model's parameters.
    pub parameter_bytes: u64,
    /// Of fp32 masters beside parameters of 16 bits.
    pub master_bytes: u64,
    /// Gradients.
    pub gradient_bytes: u64,
    /// Optimizer moments.
    pub optimizer_bytes: u64,
    /// Kept from forward for backward, and the residual streams.
    pub activation_bytes: u64,
    /// Scratch of operations, tables, staging of tokens.
    pub workspace_bytes: u64,
    /// Key-value cache.
    pub cache_bytes: u64,
    /// Sum of the byte members.
    pub total_bytes: u64,
}

impl Plan {
    pub(crate) fn read(
        write: impl FnOnce(*mut sys::nn_plan_t) -> sys::nn_status_t,
    ) -> Result<Plan> {
        let mut plan = sized!(nn_plan_t {});
        check(write(&mut plan))?;
        Ok(Plan {
            parameters: plan.parameters as u64,
            active_parameters: plan.active_parameters as u64,
            parameter_bytes: plan.parameter_bytes as u64,
            master_bytes: plan.master_bytes as u64,
            gradient_bytes: plan.gradient_bytes as u64,
            optimizer_bytes: plan.optimizer_bytes as u64,
            activation_bytes: plan.activation_bytes as u64,
            workspace_bytes: plan.workspace_bytes as u64,
            cache_bytes: plan.cache_bytes as u64,
            total_bytes: plan.total_bytes as u64,
        })
    }
}
