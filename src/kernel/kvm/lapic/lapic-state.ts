/**
 * KVM_GET_LAPIC and KVM_SET_LAPIC: the register page of 1 KiB as user space sees it (Linux arch/x86/kvm/lapic.c: kvm_apic_get_state,
 * kvm_apic_set_state, kvm_apic_state_fixup). In x2APIC mode the id stands in bits 31:24 unless KVM_CAP_X2APIC_API chose 32-bit ids.
 */
import { APIC } from '../../../abi/apic.ts';
import { LinuxError } from '../../../base/errors.ts';
import type { InterruptController } from './interrupt-controller.ts';
import { type Lapic, x2apicLdr } from './lapic.ts';

/** Bytes of struct kvm_lapic_state. */
export const LAPIC_STATE_BYTES = 1024;
const WORDS = LAPIC_STATE_BYTES / 4;

export function getLapic(lapic: Lapic, controller: InterruptController): Uint8Array {
  const words = lapic.page.slice(0, WORDS);
  words[APIC.CURRENT_COUNT >>> 2] = lapic.timer.currentCount;
  if (lapic.isX2apic) fixId(words, lapic, controller, 'get');
  return new Uint8Array(words.buffer);
}

/** Errors: EINVAL for another id with 32-bit ids in x2APIC mode; the spurious-interrupt register is set then nevertheless. */
export function setLapic(lapic: Lapic, controller: InterruptController, state: Uint8Array): void {
  const words = new Int32Array(state.slice(0, LAPIC_STATE_BYTES).buffer);
  lapic.setRegister(APIC.SPURIOUS, words[APIC.SPURIOUS >>> 2]!);
  controller.mapChanged();
  if (lapic.isX2apic) fixId(words, lapic, controller, 'set');
  lapic.page.set(words);
  lapic.setVersion();
  lapic.updatePpr();
  lapic.timer.cancel();
  lapic.timer.updateMode();
  lapic.timer.updateDivider();
  lapic.timer.start(APIC.CURRENT_COUNT);
  lapic.vcpu.kick();
}

function fixId(
  words: Int32Array,
  lapic: Lapic,
  controller: InterruptController,
  direction: 'get' | 'set',
): void {
  const { id } = lapic.vcpu;
  const at = APIC.ID >>> 2;
  if (controller.uses32BitIds) {
    if (words[at] !== id)
      throw new LinuxError('EINVAL', `KVM_${direction.toUpperCase()}_LAPIC: id ${words[at]}, want ${id}`);
  } else words[at] = direction === 'set' ? id : id << 24;
  if (direction === 'set') words[APIC.LDR >>> 2] = x2apicLdr(id);
}
