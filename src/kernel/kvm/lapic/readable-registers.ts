/** Which registers of a local APIC can be read (Linux arch/x86/kvm/lapic.c, kvm_lapic_readable_reg_mask). */
import { APIC } from '../../../abi/apic.ts';

const vectors = (first: number): number[] => Array.from({ length: 8 }, (_, word) => first + 16 * word);

const IN_BOTH_MODES: ReadonlySet<number> = new Set([
  ...[APIC.ID, APIC.VERSION, APIC.TPR, APIC.PPR, APIC.LDR, APIC.SPURIOUS, APIC.ESR, APIC.ICR],
  ...[APIC.LVT_TIMER, APIC.LVT_THERMAL, APIC.LVT_PERFORMANCE, APIC.LVT_LINT0, APIC.LVT_LINT1, APIC.LVT_ERROR],
  ...[APIC.INITIAL_COUNT, APIC.CURRENT_COUNT, APIC.DIVIDE],
  ...[APIC.ISR, APIC.TMR, APIC.IRR].flatMap(vectors),
]);
const IN_XAPIC_MODE: ReadonlySet<number> = new Set([APIC.ARBITRATION, APIC.DFR, APIC.ICR2]);

/** `register`: its offset in the page. */
export const isReadable = (register: number, mode: 'xapic' | 'x2apic'): boolean =>
  IN_BOTH_MODES.has(register) || (mode === 'xapic' && IN_XAPIC_MODE.has(register));
