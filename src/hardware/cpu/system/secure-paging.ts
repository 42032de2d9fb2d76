/**
 * The instructions by which an SNP guest manages its pages: PVALIDATE, RMPADJUST, RMPQUERY (APM volume 3; order of the checks: reference svm.md, section 6). The host's
 * RMPUPDATE and PSMASH are #UD in a guest.
 *
 * Left out: VMSA pages in use by another core (FAIL_INUSE): cores run one at a time.
 */
import { NPF } from '../../../abi/vmcb.ts';
import { PF, RFLAGS, VECTOR } from '../../../abi/x86.ts';
import type { Pfn } from '../../../base/address.ts';
import { RMP_RESULT, RMP_WORD0, RMP_WORD1, type Rmp } from '../../memory/rmp.ts';
import { ACCESS, PRIVILEGE } from '../access.ts';
import { isCanonical } from '../memory-access.ts';
import { NESTED_LARGE } from '../nested-walk.ts';
import { VC_PAGE_NOT_VALIDATED } from '../rmp-check.ts';
import { GPR } from '../state.ts';
import type { SystemInstruction } from './instruction.ts';

const FAIL_SIZEMISMATCH = 6;
/** Numbers of VMPLs, of bytes in a large page. */
const VMPLS = 4;
const LARGE_BYTES = 0x200000;
const ARITHMETIC = RFLAGS.CF | RFLAGS.PF | RFLAGS.AF | RFLAGS.ZF | RFLAGS.SF | RFLAGS.OF;
/** `locateOwn`: the instruction has its result, in EAX. */
const DONE = -1;

export function pageValidate(i: SystemInstruction): number {
  const { registers, guest, walker, memory, trace, id } = i.parts;
  if (!guest.snp) return i.undefined();
  if (!i.privileged || guest.vmpl !== 0) return i.generalProtection();
  const rmp = memory.rmp!;
  const size = registers.gprWord(GPR.RCX);
  const reason = locateOwn(i, rmp, size);
  if (reason !== 0) return reason === DONE ? i.resume() : reason;
  const { frame } = i.parts.nested;
  const wanted = (registers.gprWord(GPR.RDX) & 1) !== 0;
  const was = (rmp.words[rmp.indexOf(frame) + 1]! & RMP_WORD1.VALIDATED) !== 0;
  if (was !== wanted) rmp.setValidated(frame, wanted);
  if (trace.on) {
    const what = wanted ? 'validate' : 'rescind validation';
    trace.emit({
      kind: 'page',
      who: 'core',
      what,
      vcpu: id,
      gfn: walker.gfn,
      pfn: frame,
      pages: size === 1 ? 512 : 1,
    });
  }
  registers.setGprWord(GPR.RAX, RMP_RESULT.SUCCESS);
  registers.rflags = (registers.rflags & ~ARITHMETIC) | (was === wanted ? RFLAGS.CF : 0);
  return i.resume();
}

export function adjustPermissions(i: SystemInstruction): number {
  const { registers, guest, memory, nested, walker, trace, id } = i.parts;
  if (!guest.snp) return i.undefined();
  if (!i.privileged) return i.generalProtection();
  const rmp = memory.rmp!;
  const attributes = registers.gprWord(GPR.RDX);
  const target = attributes & 0xff;
  const mask = (attributes >>> 8) & 0xff;
  const reserved = attributes >>> 17 !== 0 || target >= VMPLS;
  const reason = reserved
    ? finish(i, RMP_RESULT.FAIL_INPUT)
    : locateValidated(i, rmp, target <= guest.vmpl ? RMP_RESULT.FAIL_PERMISSION : RMP_RESULT.SUCCESS);
  if (reason !== 0) return reason === DONE ? i.resume() : reason;
  const { frame } = nested;
  const own = rmp.words[rmp.indexOf(frame) + 2]! >>> (8 * guest.vmpl);
  if ((mask & ~own) !== 0) {
    finish(i, RMP_RESULT.FAIL_PERMISSION);
    return i.resume();
  }
  const vmsa = guest.vmpl === 0 ? (attributes & 0x10000) !== 0 : undefined;
  rmp.setPermissions(frame, target, mask, vmsa);
  if (trace.on) {
    const what = `permissions of VMPL${target}: 0x${mask.toString(16)}${vmsa ? ', VMSA' : ''}`;
    trace.emit({ kind: 'page', who: 'core', what, vcpu: id, gfn: walker.gfn, pfn: frame });
  }
  finish(i, RMP_RESULT.SUCCESS);
  return i.resume();
}

export function queryPermissions(i: SystemInstruction): number {
  const { registers, guest, memory, nested } = i.parts;
  if (!guest.snp) return i.undefined();
  if (!i.privileged) return i.generalProtection();
  const rmp = memory.rmp!;
  const target = registers.gprWord(GPR.RDX) & 0xff;
  registers.setGprWord(GPR.RCX, 0);
  const reason =
    target >= VMPLS
      ? finish(i, RMP_RESULT.FAIL_INPUT)
      : locateValidated(i, rmp, target < guest.vmpl ? RMP_RESULT.FAIL_PERMISSION : RMP_RESULT.SUCCESS);
  if (reason !== 0) return reason === DONE ? i.resume() : reason;
  const { frame } = nested;
  const at = rmp.indexOf(frame);
  const mask = (rmp.words[at + 2]! >>> (8 * target)) & 0xff;
  const vmsa = (rmp.words[at + 1]! & RMP_WORD1.VMSA) !== 0 ? 0x10000 : 0;
  registers.setGprWord(GPR.RDX, target | (mask << 8) | vmsa);
  registers.setGprWord(GPR.RCX, rmp.isLarge(frame as Pfn) ? 1 : 0);
  finish(i, RMP_RESULT.SUCCESS);
  return i.resume();
}

/** Sets EAX, and the arithmetic flags by it. */
function finish(i: SystemInstruction, code: number): number {
  const { registers } = i.parts;
  registers.setGprWord(GPR.RAX, code);
  registers.rflags = (registers.rflags & ~ARITHMETIC) | (code === 0 ? RFLAGS.ZF : 0);
  return DONE;
}

/** As `locateOwn`, for a page that must be validated. `refusal`: what the levels say, which counts after the operands' form. */
function locateValidated(i: SystemInstruction, rmp: Rmp, refusal: number): number {
  const { registers, nested, events } = i.parts;
  const size = registers.gprWord(GPR.RCX);
  const low = registers.gprWord(GPR.RAX);
  if (isMalformed(low, size)) return finish(i, RMP_RESULT.FAIL_INPUT);
  if (refusal !== 0) return finish(i, refusal);
  const reason = locateOwn(i, rmp, size);
  if (reason !== 0) return reason;
  if ((rmp.words[rmp.indexOf(nested.frame) + 1]! & RMP_WORD1.VALIDATED) !== 0) return 0;
  events.faultAddress = low;
  events.faultAddressHigh = registers.word(RAX_HIGH);
  return events.raiseWith(VECTOR.VC, VC_PAGE_NOT_VALIDATED);
}
/** The high word of RAX in the state block. */
const RAX_HIGH = 4;

/**
 * The page at linear RAX of `size` (0: 4 KiB, 1: 2 MiB), which must be the guest's own. 0: `nested.frame` and `walker.gfn` say where it is. DONE: EAX says what is wrong.
 * Else a LEAVE code.
 */
function locateOwn(i: SystemInstruction, rmp: Rmp, size: number): number {
  const { registers, walker, nested, events, rmp: check } = i.parts;
  const low = registers.gprWord(GPR.RAX);
  const high = registers.word(RAX_HIGH);
  if (isMalformed(low, size)) return finish(i, RMP_RESULT.FAIL_INPUT);
  if (!isCanonical(high)) return events.raiseNotCanonical();
  let reason = walker.locate(low, high, ACCESS.READ, PRIVILEGE.SUPERVISOR);
  if (reason !== 0) return reason;
  if (!walker.leafEncrypted) return events.raisePageFault(PF.PRESENT | PF.RESERVED, low, high);
  const { gfn } = walker;
  reason = nested.translateNested(gfn, 0, ACCESS.READ, NPF.HIGH_GUEST_FINAL, true);
  if (reason !== 0) return reason;
  const { frame, rights } = nested;
  reason = check.checkOwner(frame, gfn, 0, ACCESS.READ);
  if (reason !== 0) return reason;
  const rmpLarge = (rmp.words[rmp.indexOf(frame)]! & RMP_WORD0.LARGE) !== 0;
  const nestedLarge = (rights & NESTED_LARGE) !== 0;
  if (size === 0) return rmpLarge || nestedLarge ? check.sizeMismatch(gfn, 0, ACCESS.READ) : 0;
  return rmpLarge && nestedLarge && walker.large ? 0 : finish(i, FAIL_SIZEMISMATCH);
}

const isMalformed = (low: number, size: number): boolean =>
  (size & ~1) !== 0 || (low & ((size === 1 ? LARGE_BYTES : 4096) - 1)) !== 0;
