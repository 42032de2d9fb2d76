/**
 * Entering and leaving an encrypted guest (APM volume 2, 15.34 to 15.36; reference svm.md 1.8, 1.9 rows 15 to 19, 4.4): which key it has, and for SEV-ES the guest's
 * registers, which come from its VMSA, a page under the guest's own key, and go back there. The host sees the core's initial registers, and of TSC_AUX, where the chip
 * moves it at all, its own.
 *
 * Left out: the VMSA's integrity checksum (nobody but the core can write it), DebugVirt. YMM, PKRU and XSS stay in the VMSA as they are: this core has no AVX, no protection
 * keys and no supervisor states.
 */
import { SAVE, VMCB } from '../../abi/vmcb.ts';
import { VMSA } from '../../abi/vmsa.ts';
import type { Pfn, Spa } from '../../base/address.ts';
import { RMP_WORD0, RMP_WORD1 } from '../memory/rmp.ts';
import { SEV_FEATURE, SEV_FEATURES_KNOWN } from './encrypted-guest.ts';
import type { MsrFile } from './msr.ts';
import type { CoreParts } from './parts.ts';
import { copySaveArea } from './save-area.ts';
import { GPR, STATE } from './state.ts';
import { loadX87, storeX87 } from './vmsa-x87.ts';

const NESTED_CTL_SEV = 1 << 1;
const NESTED_CTL_SEV_ES = 1 << 2;
const MXCSR_RESET = 0x1f80;
const REFUSED = -1;
/** CPUID 0x8000001F EAX. */
const TSC_AUX_VIRTUALIZATION = 1 << 9;

/** General registers but RAX and RSP, by number: where the VMSA has them. */
const GPR_FIELDS: readonly (readonly [number, number])[] = [
  [GPR.RCX, VMSA.RCX],
  [GPR.RDX, VMSA.RDX],
  [GPR.RBX, VMSA.RBX],
  [GPR.RBP, VMSA.RBP],
  [GPR.RSI, VMSA.RSI],
  [GPR.RDI, VMSA.RDI],
  ...Array.from({ length: 8 }, (_, i) => [8 + i, VMSA.R8 + 8 * i] as const),
];

export class EncryptedState {
  readonly #parts: CoreParts;
  readonly #msrs: MsrFile;
  readonly #features = new Uint8Array(8);
  readonly #movesTscAux: boolean;
  /** TSC_AUX as VMRUN found it: what the host's save area has for #VMEXIT. */
  #hostTscAux = 0n;

  constructor(parts: CoreParts, msrs: MsrFile) {
    this.#parts = parts;
    this.#msrs = msrs;
    this.#movesTscAux = (parts.personality.sevFeatures & TSC_AUX_VIRTUALIZATION) !== 0;
  }

  /**
   * Takes what the VMCB says of encryption. Returns the system physical address of the guest's save area: the VMCB's, or the VMSA; −1 when a check fails
   * (VMEXIT_INVALID).
   */
  enter(vmcb: number): number {
    const { guest, intercepts, memory } = this.#parts;
    const control = intercepts.word(VMCB.NESTED_CTL);
    guest.leave();
    if ((control & NESTED_CTL_SEV) === 0)
      return (control & NESTED_CTL_SEV_ES) === 0 ? vmcb + VMCB.SAVE_AREA : REFUSED;
    guest.asid = intercepts.word(VMCB.ASID);
    guest.key = memory.encryption.keyOf(guest.asid);
    if (guest.key === 0) return REFUSED;
    guest.sev = true;
    if ((control & NESTED_CTL_SEV_ES) === 0) return vmcb + VMCB.SAVE_AREA;
    guest.es = true;
    const page = this.#vmsaPage();
    if (page === REFUSED) return REFUSED;
    guest.vmsa = page;
    memory.encryption.readUnder(guest.key, (page + VMSA.SEV_FEATURES) as Spa, this.#features);
    const [features, above] = new Int32Array(this.#features.buffer);
    if (above !== 0 || (features! & ~SEV_FEATURES_KNOWN) !== 0) return REFUSED;
    guest.features = features!;
    guest.snp = (guest.features & SEV_FEATURE.SNP_ACTIVE) !== 0;
    if (!this.#vmsaIsOwn(page)) return REFUSED;
    memory.encryption.open((page / 4096) as Pfn, guest.key);
    guest.vmpl = memory.bytes[page + VMSA.VMPL]! & 3;
    guest.ghcb = memory.longs[(vmcb + VMCB.GHCB_GPA) >>> 3]!;
    return page;
  }

  /** What the VMSA has beyond the save area, into the core. */
  loadRegisters(): void {
    const { guest, memory, registers } = this.#parts;
    const { longs, words } = memory;
    const { vmsa } = guest;
    for (const [number, field] of GPR_FIELDS) registers.setGpr(number, longs[(vmsa + field) >>> 3]!);
    const { state } = registers;
    memory.copyInside(state + STATE.XMM, vmsa + VMSA.XMM, 256);
    registers.setWord(STATE.MXCSR, words[(vmsa + VMSA.MXCSR) >>> 2]!);
    registers.setLong(STATE.XCR0, longs[(vmsa + VMSA.XCR0) >>> 3]!);
    loadX87(memory, registers, vmsa);
    if (!this.#movesTscAux) return;
    this.#hostTscAux = this.#msrs.tscAux;
    this.#msrs.tscAux = BigInt(words[(vmsa + VMSA.TSC_AUX) >>> 2]! >>> 0);
  }

  /** Guest state to the VMSA, with the exit as an automatic one tells the guest; the core's registers become the host's, which hold nothing. */
  store(): void {
    const { guest, memory, registers, events, intercepts } = this.#parts;
    const { longs, bytes, words } = memory;
    const { vmsa } = guest;
    const { state } = registers;
    memory.encryption.open((vmsa / 4096) as Pfn, guest.key);
    copySaveArea(memory, state + STATE.SAVE, vmsa);
    // The hardware steps over an instruction that exits by itself.
    const { exit } = events;
    const next = (BigInt(exit.nextRipHigh >>> 0) << 32n) | BigInt(exit.nextRip >>> 0);
    longs[(vmsa + SAVE.RIP) >>> 3] = next === 0n ? registers.rip : next;
    longs[(vmsa + VMSA.GUEST_NRIP) >>> 3] = next;
    longs[(vmsa + SAVE.RSP) >>> 3] = registers.gpr(GPR.RSP);
    longs[(vmsa + SAVE.RAX) >>> 3] = registers.gpr(GPR.RAX);
    longs[(vmsa + SAVE.RFLAGS) >>> 3] = BigInt(registers.rflags >>> 0);
    bytes[vmsa + VMSA.VMPL] = guest.vmpl;
    for (const [number, field] of GPR_FIELDS) longs[(vmsa + field) >>> 3] = registers.gpr(number);
    memory.copyInside(vmsa + VMSA.XMM, state + STATE.XMM, 256);
    words[(vmsa + VMSA.MXCSR) >>> 2] = registers.word(STATE.MXCSR);
    longs[(vmsa + VMSA.XCR0) >>> 3] = registers.long(STATE.XCR0);
    const at = vmsa >>> 2;
    words[at + (VMSA.GUEST_EXITCODE >> 2)] = exit.code;
    words[at + (VMSA.GUEST_EXITCODE >> 2) + 1] = exit.code >> 31;
    words[at + (VMSA.GUEST_EXITINFO1 >> 2)] = exit.info1;
    words[at + (VMSA.GUEST_EXITINFO1 >> 2) + 1] = exit.info1High;
    words[at + (VMSA.GUEST_EXITINFO2 >> 2)] = exit.info2;
    words[at + (VMSA.GUEST_EXITINFO2 >> 2) + 1] = exit.info2High;
    words[at + (VMSA.GUEST_EXITINTINFO >> 2)] = exit.interruptInfo;
    words[at + (VMSA.GUEST_EXITINTINFO >> 2) + 1] = exit.interruptError;
    longs[(intercepts.vmcb + VMCB.GHCB_GPA) >>> 3] = guest.ghcb;
    for (let number = 0; number < 16; number++) registers.setGpr(number, 0n);
    bytes.fill(0, state + STATE.XMM, state + STATE.XMM + 256);
    registers.setWord(STATE.MXCSR, MXCSR_RESET);
    storeX87(memory, registers, vmsa);
    if (!this.#movesTscAux) return;
    words[(vmsa + VMSA.TSC_AUX) >>> 2] = Number(this.#msrs.tscAux) | 0;
    this.#msrs.tscAux = this.#hostTscAux;
  }

  /** VMSA_PA, or −1 where there is no such page. */
  #vmsaPage(): number {
    const { intercepts, memory } = this.#parts;
    const low = intercepts.word(VMCB.VMSA_PA);
    const high = intercepts.word(VMCB.VMSA_PA + 4);
    const frame = (high >>> 0) * 0x100000 + (low >>> 12);
    return (low & 0xfff) !== 0 || frame >= memory.frameCount ? REFUSED : frame * 4096;
  }

  /** Row 17 of the checks: SNP-active guests' VMSA pages are theirs and marked; others' are the hypervisor's. */
  #vmsaIsOwn(page: number): boolean {
    const { guest, memory } = this.#parts;
    const { rmp } = memory;
    if (rmp?.initialised !== true) return !guest.snp;
    const at = rmp.indexOf(page / 4096);
    const low = rmp.words[at]!;
    const high = rmp.words[at + 1]!;
    if (!guest.snp) return (low & RMP_WORD0.ASSIGNED) === 0;
    const bits = RMP_WORD0.ASSIGNED | RMP_WORD0.IMMUTABLE | RMP_WORD0.LARGE;
    return (
      (low & bits) === RMP_WORD0.ASSIGNED &&
      ((high >>> RMP_WORD1.ASID_SHIFT) & RMP_WORD1.ASID) === guest.asid &&
      (high & RMP_WORD1.VMSA) !== 0
    );
  }
}
