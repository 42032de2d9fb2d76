/** What the handler of an exit says. Negative values are −errno and leave KVM_RUN; `kvmRun` says the rest. */

/** KVM_RUN returns 0 and the exit is filled. */
export const TO_USER_SPACE = 0;
/** The exit is dealt with: enter the guest again. */
export const GUEST_AGAIN = 1;
/** The vCPU waits for something: `vcpu.pending`. */
export const WAIT = 2;
