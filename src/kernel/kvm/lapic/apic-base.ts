/** IA32_APIC_BASE: which values and which changes of mode it takes (Linux arch/x86/kvm/lapic.c, kvm_apic_set_base). */
import { APIC_BASE } from '../../../abi/apic.ts';

/** Bits 0 to 7 and 9. */
const RESERVED = 0x2ffn;

type Mode = 'disabled' | 'xapic' | 'x2apic' | 'invalid';

const modeOf = (base: bigint): Mode => {
  const enabled = (base & APIC_BASE.ENABLE) !== 0n;
  if ((base & APIC_BASE.X2APIC) !== 0n) return enabled ? 'x2apic' : 'invalid';
  return enabled ? 'xapic' : 'disabled';
};

/** Whether `value` may follow `old`. A guest goes to x2APIC from xAPIC alone, and leaves it by disabling; user space does as it likes. */
export function apicBaseIsValid(
  old: bigint,
  value: bigint,
  options: { physicalBits: number; hasX2apic: boolean; by: 'guest' | 'host' },
): boolean {
  if (value === old) return true;
  if (value >> BigInt(options.physicalBits) !== 0n || (value & RESERVED) !== 0n) return false;
  if ((value & APIC_BASE.X2APIC) !== 0n && !options.hasX2apic) return false;
  const mode = modeOf(value);
  if (mode === 'invalid') return false;
  if (options.by === 'host') return true;
  const oldMode = modeOf(old);
  return !(oldMode === 'x2apic' && mode === 'xapic') && !(oldMode === 'disabled' && mode === 'x2apic');
}
