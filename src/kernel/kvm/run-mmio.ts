/**
 * MMIO and string port I/O: the instruction that touched a gpa without memory, or a port with INS or OUTS, is run once by the core's own
 * semantics, its accesses come here (Linux: x86_emulate_instruction, emulator_read_write, complete_emulated_mmio). Accesses go to user space in pieces of at most 8 bytes.
 *
 * A read whose data are not there yet makes the core abandon the instruction; KVM_EXIT_MMIO asks the VMM, the next KVM_RUN runs
 * the instruction again from its start. All that was read is kept until it completes. Writes are reported after it completed.
 *
 * A repeated INS asks for a run of elements at once; OUTS, as in Linux' emulator, for one at a time.
 *
 * The local APIC's page is the kernel's own where there is one in the kernel. Left out: other devices in the kernel; an emulated store to memory whose page comes later (throws by name).
 */
import {
  KVM_EXIT_INTERNAL_ERROR,
  KVM_EXIT_IO_IN,
  KVM_EXIT_IO_OUT,
  KVM_EXIT_MMIO,
  KVM_INTERNAL_ERROR_DELIVERY_EV,
  KVM_INTERNAL_ERROR_EMULATION,
  KVM_MEM_READONLY,
} from '../../abi/kvm.ts';
import { IOIO, NPF, VMCB, VMEXIT } from '../../abi/vmcb.ts';
import { RFLAGS, VECTOR } from '../../abi/x86.ts';
import { type Gpa, gfnOf, PAGE_SIZE } from '../../base/address.ts';
import { NotImplementedError } from '../../base/errors.ts';
import { GPR } from '../../hardware/cpu/state.ts';
import { PageFault, RET_PF, resolvedSpa } from './mmu/page-fault.ts';
import { GUEST_AGAIN, TO_USER_SPACE } from './run-result.ts';
import { handleExit } from './svm/exits.ts';
import type { MmioBus } from './svm/guest-core.ts';
import type { Vcpu } from './vcpu.ts';

const FRAGMENT = 8;
/** struct read_cache */
const READ_AHEAD_BYTES = 1024;
const NOP = 0x90;
const BYTES_VALID = 1n;
const MAX_INSTRUCTION = 15;

interface Write {
  readonly space: 'memory' | 'port';
  /** A gpa, or a port. */
  readonly at: number;
  readonly data: Uint8Array;
}

export class MmioEmulation implements MmioBus {
  readonly #vcpu: Vcpu;
  readonly #fault = new PageFault();
  /** What the VMM answered for this instruction, in the order of its reads. */
  #answers: number[] = [];
  #cursor = 0;
  /** Where the read that the VMM answers went. */
  #asked: 'memory' | 'port' = 'memory';
  /** How many bytes the VMM was asked for: what it writes over the exit does not count. */
  #askedBytes = 0;
  readonly #writes: Write[] = [];
  #ioInfo = 0;
  /** Why a read had no data: a run result. */
  #stopped = TO_USER_SPACE;

  constructor(vcpu: Vcpu) {
    this.#vcpu = vcpu;
  }

  /** Emulates the instruction at RIP. `ioInfo`: EXITINFO1 of its IOIO exit, if that is what began it. */
  begin(ioInfo = 0): number {
    this.#answers = [];
    this.#ioInfo = ioInfo;
    return this.#emulate();
  }

  /** Goes on when the thing that `begin` waited for is there. */
  resume(): number {
    return this.#emulate();
  }

  /** KVM_RUN after a read: its data are in `mmioData`, or in the PIO page. */
  completeRead(): number {
    const { kvmRun } = this.#vcpu;
    if (this.#asked === 'port') {
      for (let i = 0; i < this.#askedBytes; i++) this.#answers.push(kvmRun.pio[i]!);
    } else {
      for (let i = 0; i < this.#askedBytes; i++) this.#answers.push(kvmRun.mmioData[i]!);
    }
    return this.#emulate();
  }

  /** KVM_RUN after a write: the next piece, or back to the guest. */
  completeWrite(): number {
    return this.#goOn();
  }

  read(gpa: Gpa, into: Uint8Array): boolean {
    if (this.#isMemory(gpa, 'read')) return this.#readMemory(gpa, into);
    const { kvmRun, apic } = this.#vcpu;
    if (apic?.covers(gpa)) {
      apic.readPage(gpa, into);
      return true;
    }
    if (this.#answered(into)) return true;
    const have = this.#answers.length - this.#cursor;
    this.#asked = 'memory';
    kvmRun.exitReason = KVM_EXIT_MMIO;
    kvmRun.mmioPhysAddrNumber = gpa + have;
    this.#askedBytes = Math.min(into.length - have, FRAGMENT);
    kvmRun.mmioLen = this.#askedBytes;
    kvmRun.mmioIsWrite = 0;
    kvmRun.mmioData.fill(0);
    this.#vcpu.cycle.awaitMmio('read');
    this.#stopped = TO_USER_SPACE;
    return false;
  }

  write(gpa: Gpa, from: Uint8Array): void {
    if (this.#isMemory(gpa, 'write')) {
      this.#writeMemory(gpa, from);
      return;
    }
    const { apic } = this.#vcpu;
    if (apic?.covers(gpa)) {
      apic.writePage(gpa, from);
      return;
    }
    for (let at = 0; at < from.length; at += FRAGMENT)
      this.#writes.push({ space: 'memory', at: gpa + at, data: from.slice(at, at + FRAGMENT) });
  }

  /** KVM_EXIT_IO for as many elements as KVM reads ahead. */
  portRead(port: number, into: Uint8Array): boolean {
    if (this.#answered(into)) return true;
    this.#asked = 'port';
    this.#exitIo(port, into.length, KVM_EXIT_IO_IN, this.#readAhead(into.length));
    this.#vcpu.cycle.awaitMmio('read');
    this.#stopped = TO_USER_SPACE;
    return false;
  }

  portWrite(port: number, from: Uint8Array): void {
    this.#writes.push({ space: 'port', at: port, data: from.slice() });
  }

  /** True if the VMM has answered all of this read. */
  #answered(into: Uint8Array): boolean {
    if (this.#answers.length - this.#cursor < into.length) return false;
    for (let i = 0; i < into.length; i++) into[i] = this.#answers[this.#cursor++]!;
    return true;
  }

  /** How many elements of a repeated INS user space is asked for at once (pio_in_emulated, which takes the bytes left in the page for elements). */
  #readAhead(size: number): number {
    const info = this.#ioInfo;
    if ((info & IOIO.REP) === 0) return 1;
    const { gpr, vmcb } = this.#vcpu;
    // KVM's count has 32 bits, with 64-bit addresses too.
    const bits = (info & (IOIO.ADDRESS64 | IOIO.ADDRESS32)) !== 0 ? 32 : 16;
    const count = Number(BigInt.asUintN(bits, gpr[GPR.RCX]!));
    const offset = Number(gpr[GPR.RDI]! & 0xfffn);
    const inPage = (vmcb.rflags & RFLAGS.DF) !== 0 ? offset : PAGE_SIZE - offset;
    return Math.max(1, Math.min(inPage, READ_AHEAD_BYTES / size, count));
  }

  #exitIo(port: number, size: number, direction: number, count: number): void {
    this.#vcpu.kvmRun.exitForIo(direction, size, port, count);
    this.#askedBytes = size * count;
  }

  #emulate(): number {
    const vcpu = this.#vcpu;
    for (;;) {
      this.#cursor = 0;
      this.#writes.length = 0;
      switch (vcpu.core.emulate(vcpu.vmcb.spa, this)) {
        case 'done':
          // What was read ahead is for the elements that follow; after an exception it is lost.
          this.#answers = this.#cursor === 0 ? [] : this.#answers.slice(this.#cursor);
          return this.#goOn();
        case 'pending':
          return this.#stopped;
        case 'failed':
          return this.fail();
        case 'exit': {
          const code = vcpu.vmcb.word(VMCB.EXITCODE);
          const result = handleExit(vcpu, code);
          // Its code or page tables were not mapped and are now: what it read so far still counts.
          if (code !== VMEXIT.NPF || result !== GUEST_AGAIN) return result;
        }
      }
    }
  }

  /** The next write for user space, then the rest of a repeated INS, then the guest. */
  #goOn(): number {
    const write = this.#writes.shift();
    if (write === undefined) return this.#answers.length > 0 ? this.#emulate() : GUEST_AGAIN;
    const { kvmRun } = this.#vcpu;
    if (write.space === 'port') {
      this.#exitIo(write.at, write.data.length, KVM_EXIT_IO_OUT, 1);
      kvmRun.setIoValue(write.data.reduceRight((value, byte) => (value << 8) | byte, 0));
      this.#vcpu.cycle.awaitMmio('write');
      return TO_USER_SPACE;
    }
    kvmRun.exitReason = KVM_EXIT_MMIO;
    kvmRun.mmioPhysAddrNumber = write.at;
    kvmRun.mmioLen = write.data.length;
    kvmRun.mmioIsWrite = 1;
    kvmRun.mmioData.fill(0);
    kvmRun.mmioData.set(write.data);
    this.#vcpu.cycle.awaitMmio('write');
    return TO_USER_SPACE;
  }

  /** The instruction may touch memory as well, which is perhaps not mapped yet. */
  #isMemory(gpa: Gpa, access: 'read' | 'write'): boolean {
    const slot = this.#vcpu.vm.slots.find(gfnOf(gpa));
    return slot !== undefined && (access === 'read' || (slot.flags & KVM_MEM_READONLY) === 0);
  }

  #readMemory(gpa: Gpa, into: Uint8Array): boolean {
    const outcome = this.#faultIn(gpa, 0);
    if (outcome !== GUEST_AGAIN) {
      this.#stopped = outcome;
      return false;
    }
    this.#vcpu.vm.memory.read(resolvedSpa(this.#fault), into);
    return true;
  }

  #writeMemory(gpa: Gpa, from: Uint8Array): void {
    if (this.#faultIn(gpa, NPF.WRITE) !== GUEST_AGAIN)
      throw new NotImplementedError('an emulated store to memory that cannot be had at once');
    this.#vcpu.vm.memory.write(resolvedSpa(this.#fault), from);
  }

  /** GUEST_AGAIN: `#fault` is resolved. */
  #faultIn(gpa: Gpa, error: number): number {
    const { vm, faults, kvmRun } = this.#vcpu;
    for (;;) {
      this.#fault.begin(gpa, error, vm.attributes.isPrivate(gfnOf(gpa)) ? 'private' : 'shared');
      const outcome = faults.handle(this.#fault, kvmRun);
      if (outcome < 0) return outcome;
      if (outcome === RET_PF.PENDING) return this.#vcpu.cycle.waitForMmio(this.#fault.pending!);
      if (outcome === RET_PF.FIXED || outcome === RET_PF.SPURIOUS) return GUEST_AGAIN;
      if (outcome === RET_PF.RETRY) continue;
      throw new NotImplementedError('an emulated access to a read-only slot');
    }
  }

  /** An instruction that cannot be emulated: #UD, and for one of CPL 0 INTERNAL_ERROR first (handle_emulation_failure). */
  fail(): number {
    const { vmcb, events } = this.#vcpu;
    events.queueException(VECTOR.UD);
    return vmcb.cpl !== 0 ? GUEST_AGAIN : this.reportFailure();
  }

  /** INTERNAL_ERROR EMULATION with the instruction's bytes and the exit (prepare_emulation_failure_exit). */
  reportFailure(): number {
    const { vmcb, kvmRun, core } = this.#vcpu;
    kvmRun.exitReason = KVM_EXIT_INTERNAL_ERROR;
    kvmRun.internalErrorSuberror = KVM_INTERNAL_ERROR_EMULATION;
    const bytes = new Uint8Array(MAX_INSTRUCTION).fill(NOP);
    const size = core.fetchBytes(vmcb.spa, bytes);
    let at = 1;
    kvmRun.setInternalErrorData(0, size > 0 ? BYTES_VALID : 0n);
    if (size > 0) {
      const packed = new Uint8Array(16);
      packed[0] = size;
      packed.set(bytes, 1);
      const view = new DataView(packed.buffer);
      kvmRun.setInternalErrorData(1, view.getBigUint64(0, true));
      kvmRun.setInternalErrorData(2, view.getBigUint64(8, true));
      at = 3;
    }
    const info = [
      vmcb.long(VMCB.EXITCODE),
      vmcb.long(VMCB.EXITINFO1),
      vmcb.long(VMCB.EXITINFO2),
      BigInt(vmcb.word(VMCB.EXITINTINFO) >>> 0),
      BigInt(vmcb.word(VMCB.EXITINTINFO + 4) >>> 0),
    ];
    for (const value of info) kvmRun.setInternalErrorData(at++, value);
    kvmRun.internalErrorNdata = at;
    return TO_USER_SPACE;
  }

  /** An exception's delivery (its stack, the IDT) lies where there is no memory. */
  failDelivery(): number {
    const { vmcb, kvmRun, id } = this.#vcpu;
    kvmRun.exitReason = KVM_EXIT_INTERNAL_ERROR;
    kvmRun.internalErrorSuberror = KVM_INTERNAL_ERROR_DELIVERY_EV;
    kvmRun.internalErrorNdata = 5;
    kvmRun.setInternalErrorData(0, vmcb.long(VMCB.EXITINFO2));
    kvmRun.setInternalErrorData(1, vmcb.long(VMCB.EXITCODE));
    kvmRun.setInternalErrorData(2, vmcb.long(VMCB.EXITINFO1));
    kvmRun.setInternalErrorData(3, BigInt(this.#vcpu.fault.gpa));
    kvmRun.setInternalErrorData(4, BigInt(id));
    return TO_USER_SPACE;
  }
}
