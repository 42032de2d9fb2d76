#ifndef VMSA_H
#define VMSA_H

#include "snp/snp.h"

/* SEV_FEATURES that every VMSA of the guest has. */
u64 vmsa_features(void);
void vmsa_fill(u8 *page, u64 entry, u64 stack, struct vcpu *vcpu);
/* RMPADJUST: its code. */
u64 vmsa_declare(u8 *page, int is_vmsa);

#endif
