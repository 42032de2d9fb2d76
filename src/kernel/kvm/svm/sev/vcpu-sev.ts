/**
 * A vCPU's side of SEV-ES and SNP (struct vcpu_sev_es_state; Linux arch/x86/kvm/svm/sev.c): its VMSA, the GHCB between VMGEXIT and the next entry, and the replacement
 * of its VMSA by the guest (AP creation).
 *
 * Left out: write traps of CR0, CR4 and EFER (KVM follows the guest's modes by them and nothing here asks), DebugSwap, LBR virtualisation.
 */
import { GHCB, GHCB_ANSWER, GHCB_MSR } from '../../../../abi/ghcb.ts';
import { KVM_EXIT_AP_RESET_HOLD } from '../../../../abi/kvm.ts';
import { SevExits } from '../../../../abi/kvm-run-sev.ts';
import { EVENT, INTERCEPT, SAVE, VMCB } from '../../../../abi/vmcb.ts';
import { VMSA } from '../../../../abi/vmsa.ts';
import { CR0, EFER, VECTOR } from '../../../../abi/x86.ts';
import { type Gfn, gfnOf, gpa, type Pfn, type Spa, spaOf } from '../../../../base/address.ts';
import { ERRNO, LinuxError } from '../../../../base/errors.ts';
import { makeShared } from '../../../host-rmp.ts';
import type { Fpu } from '../../../interface.ts';
import { hvaOf } from '../../guest-access.ts';
import type { BackingPage } from '../../mmu/guest-memory.ts';
import { GUEST_AGAIN, TO_USER_SPACE } from '../../run-result.ts';
import type { Vcpu } from '../../vcpu.ts';
import { initialGhcbMsr } from './ghcb-msr.ts';
import { GhcbPage } from './ghcb-page.ts';
import type { SevVm } from './sev-vm.ts';

const NESTED_CTL = 7n;
const LEVEL_4K = 1;
const LARGE_FRAMES = 512;
const CR4_MCE = 1n << 6n;
const TASK_PRIORITY = 8;
const DR7_FIXED = 0x400n;
const NO_VMSA = -1n;
/** Bits 63:12 of the answer to a reset hold. */
const RESET_HOLD_ENDED = 1n << 12n;
const CS_LONG = 1 << 25;
const INTERRUPT_MASK = 2;
const RFLAGS_IF = 0x200n;
const RFLAGS_FIXED = 2n;
const [RBX, RCX, RDX, RSI] = [3, 1, 2, 6];
/** General registers but RAX and RSP: where the VMSA has them. */
const VMSA_GPRS: readonly (readonly [number, number])[] = [
  [1, VMSA.RCX],
  [2, VMSA.RDX],
  [3, VMSA.RBX],
  [5, VMSA.RBP],
  [6, VMSA.RSI],
  [7, VMSA.RDI],
  ...Array.from({ length: 8 }, (_, i) => [8 + i, VMSA.R8 + 8 * i] as const),
];

/** CPUID 0x8000001F EAX: TSC_AUX of an SEV-ES guest lies in its VMSA (X86_FEATURE_V_TSC_AUX). */
const V_TSC_AUX = 1 << 9;

class Page implements BackingPage {
  pfn = 0 as Pfn;
  order = 0;
  writable = false;
  pending: Promise<void> | undefined = undefined;
}

export class VcpuSev {
  readonly sev: SevVm;
  readonly vcpu: Vcpu;
  readonly exits: SevExits;
  /** The VMSA was given to the guest: its registers are out of reach. */
  isProtected = false;
  /** Guest frame number of the GHCB that the guest registered; −1: none. */
  registeredGhcb = -1;
  /** The GHCB, from VMGEXIT until the next entry. */
  ghcb: GhcbPage | undefined;
  /** Gives the guest a scratch area that is not in the GHCB, before the next entry. */
  writeBack: (() => void) | undefined;
  /** Finishes what user space was asked. A run result. */
  completion: (() => number) | undefined;
  /** AP creation: the guest's next VMSA; −1: none. Taken up when `resetRequested`. */
  nextVmsa = -1;
  resetRequested = false;
  /** The next VMSA waits for an INIT. */
  resetOnInit = false;
  /** Page state change: the entries that user space works on. */
  readonly psc = { first: 0, inFlight: 0 };
  /** How the vCPU waits in AP reset hold. */
  resetHold: 'none' | 'event' | 'msr' = 'none';
  readonly #frame: Pfn;
  readonly #page = new Page();
  #hadSipi = false;
  /** VMSA_PA, once it was the guest's own (snp_has_guest_vmsa), or none. */
  #guestVmsa: bigint | undefined;

  /** Errors: ENOMEM. */
  constructor(sev: SevVm, vcpu: Vcpu) {
    this.sev = sev;
    this.vcpu = vcpu;
    this.exits = new SevExits(vcpu.kvmRun.bytes);
    this.#frame = allocateVmsa(sev);
    this.initControl();
  }

  /** What the VMCB says beyond a plain guest's (sev_es_init_vmcb). */
  initControl(): void {
    const { vmcb } = this.vcpu;
    vmcb.setLong(VMCB.NESTED_CTL, NESTED_CTL);
    vmcb.dropIntercept(INTERCEPT.XSETBV);
    // A move to CR8 cannot be carried out for the guest; KVM hears of it afterwards.
    vmcb.setWord(VMCB.INTERCEPT_CR, 0);
    vmcb.intercept(INTERCEPT.CR0_WRITE_TRAP + TASK_PRIORITY);
    vmcb.dropExceptionIntercept(VECTOR.UD);
    vmcb.setWord(VMCB.ASID, this.sev.asid);
    vmcb.setLong(VMCB.VMSA_PA, BigInt(spaOf(this.#frame)));
    vmcb.setLong(VMCB.GHCB_GPA, initialGhcbMsr(this.sev));
  }

  /**
   * Writes the vCPU's registers to the VMSA, as they will be measured (sev_es_sync_vmsa). `protect`: the page is the guest's now. Errors: EINVAL (debugging, or DR7 in
   * use), EIO (the page is the guest's already: where Linux dies of the write).
   */
  synchroniseVmsa(): { frame: Pfn; protect(): void } {
    const { vcpu, sev } = this;
    const { memory } = sev.vm;
    if (vcpu.debug.control !== 0 || (vcpu.vmcb.save(SAVE.DR7) & ~DR7_FIXED) !== 0n)
      throw new LinuxError('EINVAL', `VMSA of vCPU ${vcpu.id}: the vCPU is being debugged`);
    if (this.isProtected) throw new LinuxError('EIO', `VMSA of vCPU ${vcpu.id}: it is the guest's already`);
    const bytes = new Uint8Array(4096);
    const view = new DataView(bytes.buffer);
    memory.read((vcpu.vmcb.spa + VMCB.SAVE_AREA) as Spa, bytes.subarray(0, SAVE.DBGCTL + 8));
    // KVM runs its guests with caches on (quirk CD_NW_CLEARED) and machine checks enabled.
    view.setBigUint64(SAVE.CR0, vcpu.vmcb.save(SAVE.CR0) & ~BigInt((CR0.CD | CR0.NW) >>> 0), true);
    view.setBigUint64(SAVE.CR4, vcpu.vmcb.save(SAVE.CR4) | CR4_MCE, true);
    for (const [number, field] of VMSA_GPRS) view.setBigUint64(field, vcpu.gpr[number]!, true);
    view.setBigUint64(VMSA.XCR0, vcpu.getXcrs().xcrs[0]?.value ?? 1n, true);
    view.setBigUint64(VMSA.SEV_FEATURES, sev.vmsaFeatures, true);
    // KVM_GET_FPU leaves MXCSR out.
    putFpu({ ...vcpu.getFpu(), mxcsr: vcpu.core.mxcsr }, view);
    memory.write(spaOf(this.#frame), bytes);
    return { frame: this.#frame, protect: () => this.#protect() };
  }

  /** From now on KVM knows of the guest's registers what the GHCB tells it. */
  #protect(): void {
    const { vmcb } = this.vcpu;
    this.isProtected = true;
    vmcb.setSave(SAVE.EFER, BigInt(EFER.SVME | EFER.LME | EFER.LMA));
    vmcb.setSaveWord(SAVE.CS, CS_LONG);
    vmcb.setSave(SAVE.RFLAGS, RFLAGS_FIXED);
  }

  /** Before KVM_RUN does anything: a new VMSA, or none. */
  beforeRun(): void {
    if (this.resetRequested) this.#takeNextVmsa();
  }

  /** Before an entry (pre_sev_run). 0, or −errno. */
  beforeEntry(): number {
    if (this.resetRequested) this.#takeNextVmsa();
    const { vmcb } = this.vcpu;
    if (BigInt.asIntN(64, vmcb.long(VMCB.VMSA_PA)) === NO_VMSA) return -ERRNO.EINVAL;
    this.resetHold = 'none';
    if (this.ghcb !== undefined) this.#returnGhcb(this.ghcb);
    return 0;
  }

  /** After an exit: of RFLAGS only IF is known. */
  afterExit(): void {
    const { vmcb } = this.vcpu;
    const on = (vmcb.word(VMCB.INT_STATE) & INTERRUPT_MASK) !== 0;
    vmcb.setSave(SAVE.RFLAGS, on ? RFLAGS_IF | RFLAGS_FIXED : RFLAGS_FIXED);
  }

  /** Maps the guest's page at `address` as the GHCB. Undefined: it cannot be. */
  mapGhcb(address: number): GhcbPage | undefined {
    const { vm } = this.sev;
    const where = hvaOf(vm, gpa(address));
    if (where === undefined || vm.faultInHva(where, 'write', this.#page) !== 0) return undefined;
    this.ghcb = new GhcbPage(vm.memory, this.#page.pfn, address);
    return this.ghcb;
  }

  /** The request's registers become the vCPU's, as its exit handlers see them. */
  takeRegisters(): void {
    const { request } = this.ghcb!;
    const { vmcb, gpr } = this.vcpu;
    vmcb.setSave(SAVE.RAX, request.rax);
    gpr[RBX!] = request.rbx;
    gpr[RCX!] = request.rcx;
    gpr[RDX!] = request.rdx;
    gpr[RSI!] = request.rsi;
    vmcb.setSaveWord(SAVE.CPL & ~3, (vmcb.saveWord(SAVE.CPL & ~3) & 0xffffff) | (request.cpl << 24));
  }

  /** SW_EXITINFO of the answer. */
  answer(info1: number | bigint, info2: number | bigint): number {
    this.ghcb?.answer(BigInt(info1), BigInt.asUintN(64, BigInt(info2)));
    return GUEST_AGAIN;
  }

  /** The guest's #VC handler is to raise an exception. `error` undefined: one without an error code. */
  raiseInGuest(vector: number, error?: number): number {
    const event =
      BigInt(
        (vector | EVENT.TYPE_EXCEPTION | EVENT.VALID | (error === undefined ? 0 : EVENT.ERROR_CODE_VALID)) >>>
          0,
      ) |
      (BigInt((error ?? 0) >>> 0) << 32n);
    return this.answer(GHCB_ANSWER.EXCEPTION, event);
  }

  /** Has KVM_RUN finish this first when user space comes back. */
  awaitUserSpace(completion: () => number): void {
    this.completion = completion;
  }

  /** AP reset hold: the vCPU waits for INIT and SIPI, or for user space where local APICs are its business. A run result. */
  holdReset(by: 'event' | 'msr'): number {
    this.resetHold = by;
    if (this.vcpu.apic !== undefined) {
      this.vcpu.mp.holdForReset();
      return GUEST_AGAIN;
    }
    this.vcpu.kvmRun.exitReason = KVM_EXIT_AP_RESET_HOLD;
    return TO_USER_SPACE;
  }

  /**
   * SIPI (sev_vcpu_deliver_sipi_vector). The first starts the vCPU as the VMM made it: false, where its registers are not protected; a later one ends its reset hold with a
   * number that is not 0.
   */
  sipiReceived(): boolean {
    if (!this.#hadSipi) {
      this.#hadSipi = true;
      return this.isProtected;
    }
    if (this.resetHold === 'event') this.answer(GHCB_ANSWER.OK, 1);
    else if (this.resetHold === 'msr')
      this.vcpu.vmcb.setLong(VMCB.GHCB_GPA, RESET_HOLD_ENDED | BigInt(GHCB_MSR.AP_RESET_HOLD_RESPONSE));
    return true;
  }

  /** INIT: a VMSA that was to wait for it is taken up. `ghcbMsr`: the MSR stays as it was. */
  initReceived(ghcbMsr: bigint): void {
    const { vmcb } = this.vcpu;
    this.initControl();
    vmcb.setLong(VMCB.GHCB_GPA, ghcbMsr);
    if (this.#guestVmsa !== undefined) vmcb.setLong(VMCB.VMSA_PA, this.#guestVmsa);
    if (this.isProtected) this.#protect();
    if (!this.resetOnInit) return;
    this.resetOnInit = false;
    this.resetRequested = true;
  }

  /** User space's answer to an exit of this vCPU is there. */
  complete(): number {
    const { completion } = this;
    this.completion = undefined;
    return completion?.() ?? GUEST_AGAIN;
  }

  /** Errors: EINVAL, once the registers are the guest's alone. */
  checkUnprotected(call: string): void {
    if (this.isProtected) throw new LinuxError('EINVAL', `${call}: the guest's state is protected`);
  }

  /** VMRUN and #VMEXIT move the guest's TSC_AUX, which KVM never sees. */
  get ownsTscAux(): boolean {
    return (this.sev.host.machine.sevFeatures & V_TSC_AUX) !== 0;
  }
  get passesTscAux(): boolean {
    return this.ownsTscAux && this.vcpu.cpuid.hasTscAux;
  }

  /** Whether the MSR is the guest's alone, who writes it without an exit (sev_es_prevent_msr_access). */
  hidesMsr(index: number): boolean {
    return this.isProtected && !this.vcpu.interceptsMsrWrite(index);
  }

  /** The vCPU is closed. A page that the guest keeps is leaked. */
  free(): void {
    const { memory } = this.sev.vm;
    if (makeShared(memory, this.#frame, LEVEL_4K) !== 0) {
      this.sev.host.psp.leak(this.#frame);
      return;
    }
    memory.free(this.#frame, 0);
  }

  /** sev_es_unmap_ghcb and sev_es_sync_to_ghcb: RAX, RBX, RCX and RDX always go back. */
  #returnGhcb(ghcb: GhcbPage): void {
    this.writeBack?.();
    this.writeBack = undefined;
    const { vmcb, gpr } = this.vcpu;
    ghcb.set(GHCB.RAX, vmcb.save(SAVE.RAX));
    ghcb.set(GHCB.RBX, gpr[RBX!]!);
    ghcb.set(GHCB.RCX, gpr[RCX!]!);
    ghcb.set(GHCB.RDX, gpr[RDX!]!);
    this.ghcb = undefined;
  }

  /** sev_snp_init_protected_guest_state: the VMSA that another vCPU made for this one, or none. */
  #takeNextVmsa(): void {
    this.resetRequested = false;
    const { vmcb } = this.vcpu;
    const address = this.nextVmsa;
    this.nextVmsa = -1;
    this.#guestVmsa = BigInt.asUintN(64, NO_VMSA);
    vmcb.setLong(VMCB.VMSA_PA, this.#guestVmsa);
    this.vcpu.mp.halt();
    // None, −1, is in no slot.
    const gfn: Gfn = gfnOf(gpa(address));
    const slot = this.sev.vm.slots.find(gfn);
    if (slot === undefined || this.sev.vm.gmemGetUnprepared(slot, gfn, this.#page) !== 0) return;
    this.#guestVmsa = BigInt(spaOf(this.#page.pfn));
    vmcb.setLong(VMCB.VMSA_PA, this.#guestVmsa);
    this.vcpu.mp.makeRunnable();
  }
}

/** The VMSA's x87 registers are 8 times 8 bytes, then 8 times the 2 that are left. */
function putFpu(fpu: Fpu, view: DataView): void {
  view.setUint32(VMSA.MXCSR, fpu.mxcsr, true);
  view.setUint16(VMSA.X87_FTW, fpu.ftwx, true);
  view.setUint16(VMSA.X87_FSW, fpu.fsw, true);
  view.setUint16(VMSA.X87_FCW, fpu.fcw, true);
  view.setUint16(VMSA.X87_FOP, fpu.lastOpcode, true);
  view.setBigUint64(VMSA.X87_RIP, fpu.lastIp, true);
  view.setBigUint64(VMSA.X87_DP, fpu.lastDp, true);
  const page = new Uint8Array(view.buffer);
  for (const [i, register] of fpu.fpr.entries()) {
    page.set(register.subarray(0, 8), VMSA.X87_REGISTERS + 8 * i);
    page.set(register.subarray(8, 10), VMSA.X87_REGISTERS + 64 + 2 * i);
  }
  for (const [i, register] of fpu.xmm.entries()) page.set(register, VMSA.XMM + 16 * i);
}

/** A page that does not begin 2 MiB, as KVM takes them (snp_safe_alloc_page: an erratum makes the 2 MiB around such a VMSA unusable). */
function allocateVmsa(sev: SevVm): Pfn {
  const { memory } = sev.vm;
  const owner = memory.owner('VMSA');
  const first: Pfn[] = [];
  let frame = memory.allocate(0, owner);
  for (; frame >= 0 && frame % LARGE_FRAMES === 0; frame = memory.allocate(0, owner))
    first.push(frame as Pfn);
  for (const each of first) memory.free(each, 0);
  if (frame < 0) throw new LinuxError('ENOMEM', 'no frame for a VMSA');
  return frame as Pfn;
}
