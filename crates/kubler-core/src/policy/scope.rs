//! The head of a policy: whom, what and where it is about, before any condition.

use cedar_policy::pst::{
    ActionConstraint, EntityOrSlot, EntityType, EntityUID, PrincipalConstraint, ResourceConstraint,
    Template,
};

use super::Action;
use super::attributes::Described;

/// A policy's head.
#[derive(Debug)]
pub(super) struct Scope {
    principal: PrincipalConstraint,
    action: ActionConstraint,
    resource: ResourceConstraint,
}

impl Scope {
    pub(super) fn of(policy: &Template) -> Self {
        Self {
            principal: policy.principal.clone(),
            action: policy.action.clone(),
            resource: policy.resource.clone(),
        }
    }

    /// Whether jobs can be meant.
    pub(super) fn admits_jobs(&self) -> bool {
        match &self.principal {
            PrincipalConstraint::Any => true,
            PrincipalConstraint::Is(kind) | PrincipalConstraint::IsIn(kind, _) => is(kind, "Job"),
            PrincipalConstraint::Eq(entity) | PrincipalConstraint::In(entity) => match entity {
                EntityOrSlot::Entity(uid) => is(&uid.ty, "Job"),
                EntityOrSlot::Slot(_) => true,
            },
        }
    }

    /// Whether nothing but profiles is meant.
    pub(super) fn is_about_profiles(&self) -> bool {
        matches!(&self.resource, ResourceConstraint::Is(kind) if is(kind, "Profile"))
    }

    /// The one thing it is about, when it names one.
    pub(super) fn named_resource(&self) -> Option<&EntityUID> {
        match &self.resource {
            ResourceConstraint::Eq(EntityOrSlot::Entity(uid))
            | ResourceConstraint::In(EntityOrSlot::Entity(uid))
            | ResourceConstraint::IsIn(_, EntityOrSlot::Entity(uid)) => Some(uid),
            ResourceConstraint::Any
            | ResourceConstraint::Is(_)
            | ResourceConstraint::Eq(EntityOrSlot::Slot(_))
            | ResourceConstraint::In(EntityOrSlot::Slot(_))
            | ResourceConstraint::IsIn(_, EntityOrSlot::Slot(_)) => None,
        }
    }

    /// Whether `action` is meant.
    pub(super) fn covers_action(&self, action: Action) -> bool {
        let named = |uid: &EntityUID| is(&uid.ty, "Action") && uid.eid == action.as_str();
        match &self.action {
            ActionConstraint::Any => true,
            ActionConstraint::Eq(uid) => named(uid),
            ActionConstraint::In(uids) => uids.iter().any(named),
        }
    }

    /// Whether this caller and this target are meant. Nothing is a member of anything here, so `in` means `==`.
    pub(super) fn covers(&self, principal: &Described, resource: &Described) -> bool {
        let principal_is_meant = match &self.principal {
            PrincipalConstraint::Any => true,
            PrincipalConstraint::Is(kind) => is(kind, principal.kind),
            PrincipalConstraint::Eq(entity) | PrincipalConstraint::In(entity) => {
                names(entity, principal)
            }
            PrincipalConstraint::IsIn(kind, entity) => {
                is(kind, principal.kind) && names(entity, principal)
            }
        };
        let resource_is_meant = match &self.resource {
            ResourceConstraint::Any => true,
            ResourceConstraint::Is(kind) => is(kind, resource.kind),
            ResourceConstraint::Eq(entity) | ResourceConstraint::In(entity) => {
                names(entity, resource)
            }
            ResourceConstraint::IsIn(kind, entity) => {
                is(kind, resource.kind) && names(entity, resource)
            }
        };
        principal_is_meant && resource_is_meant
    }
}

/// Whether `kind` is our type `name`, which has no namespace.
pub(super) fn is(kind: &EntityType, name: &str) -> bool {
    kind.0.namespace.is_empty() && kind.0.id.as_str() == name
}

fn names(entity: &EntityOrSlot, described: &Described) -> bool {
    match entity {
        EntityOrSlot::Entity(uid) => {
            is(&uid.ty, described.kind) && uid.eid == described.id.as_str()
        }
        EntityOrSlot::Slot(_) => false,
    }
}
