/**
 * The instructions by which an SNP guest manages its pages: PVALIDATE, RMPADJUST, RMPQUERY (APM volume 3; order of the checks: reference svm.md, section 6). The host's
 * RMPUPDATE and PSMASH are #UD in a guest.
 *
 * Sizes that differ come at two places. 4 KiB of a 2 MiB page is a nested fault (SIZEM), of the stage of RMP checks that precedes Validated (APM volume 2, 15.36.10: a page
 * that fails both is #VMEXIT(NPF), not #VC). 2 MiB of 4 KiB pages is an answer in EAX: PVALIDATE gives it before it looks at Validated, RMPADJUST after its #VC for a page
 * that is not validated and before it compares the masks (so in svm.md's steps 4 to 6, and in VeriSMo's model of both instructions).
 *
 * Left out: VMSA pages in use by another core (FAIL_INUSE): cores run one at a time.
 */
import { NPF } from '../../../abi/vmcb.ts';
import { PF, RFLAGS, VECTOR } from '../../../abi/x86.ts';
import type { Pfn } from '../../../base/address.ts';
import { RMP_RESULT, RMP_WORD1, type Rmp } from '../../memory/rmp.ts';
import { ACCESS, PRIVILEGE } from '../access.ts';
import { isCanonical } from '../memory-access.ts';
import { NESTED_LARGE } from '../nested-walk.ts';
import { VC_PAGE_NOT_VALIDATED } from '../rmp-check.ts';
import { GPR } from '../state.ts';
import type { SystemInstruction } from './instruction.ts';

/** CPUID 0x8000001F EAX: RMPQUERY is there. */
const HAS_QUERY = 1 << 6;
const FAIL_SIZEMISMATCH = 6;
/** ECX: 4 KiB, 2 MiB. */
const SMALL = 0;
const LARGE = 1;
/** Numbers of VMPLs, of bytes in a large page. */
const VMPLS = 4;
const LARGE_BYTES = 0x200000;
const ARITHMETIC = RFLAGS.CF | RFLAGS.PF | RFLAGS.AF | RFLAGS.ZF | RFLAGS.SF | RFLAGS.OF;
/** The instruction has its result, in EAX. */
const DONE = -1;

export function pageValidate(i: SystemInstruction): number {
  const { registers, guest, walker, memory, trace, id } = i.parts;
  if (!guest.snp) return i.undefined();
  if (!i.privileged || guest.vmpl !== 0) return i.generalProtection();
  const rmp = memory.rmp!;
  const size = registers.gprWord(GPR.RCX);
  const reason = checkForm(i, size) || locateOwn(i) || checkSmall(i, rmp, size) || checkLarge(i, rmp, size);
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
      pages: size === LARGE ? 512 : 1,
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
  const size = registers.gprWord(GPR.RCX);
  const reserved = attributes >>> 17 !== 0 || target >= VMPLS;
  const reason =
    (reserved ? finish(i, RMP_RESULT.FAIL_INPUT) : checkForm(i, size)) ||
    (target <= guest.vmpl ? finish(i, RMP_RESULT.FAIL_PERMISSION) : locateOwn(i)) ||
    checkSmall(i, rmp, size) ||
    checkValidated(i, rmp) ||
    checkLarge(i, rmp, size);
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

/** RMPQUERY, where the chip has it: RCX is no operand but a result, so that sizes are not compared. */
export function queryPermissions(i: SystemInstruction): number {
  const { registers, guest, memory, nested, personality } = i.parts;
  if (!guest.snp || (personality.sevFeatures & HAS_QUERY) === 0) return i.undefined();
  if (!i.privileged) return i.generalProtection();
  const rmp = memory.rmp!;
  const target = registers.gprWord(GPR.RDX) & 0xff;
  const reason =
    (target >= VMPLS ? finish(i, RMP_RESULT.FAIL_INPUT) : checkForm(i, SMALL)) ||
    (target < guest.vmpl ? finish(i, RMP_RESULT.FAIL_PERMISSION) : locateOwn(i)) ||
    checkValidated(i, rmp);
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

/** The size and the form of the address in RAX. 0 or DONE. */
function checkForm(i: SystemInstruction, size: number): number {
  const low = i.parts.registers.gprWord(GPR.RAX);
  const isWellFormed = (size & ~LARGE) === 0 && (low & ((size === LARGE ? LARGE_BYTES : 4096) - 1)) === 0;
  return isWellFormed ? 0 : finish(i, RMP_RESULT.FAIL_INPUT);
}

/** The page at linear RAX, which must be the guest's own. 0: `nested.frame` and `walker.gfn` say where it is. Else a LEAVE code. */
function locateOwn(i: SystemInstruction): number {
  const { registers, walker, nested, events, rmp: check } = i.parts;
  const low = registers.gprWord(GPR.RAX);
  const high = registers.word(RAX_HIGH);
  if (!isCanonical(high)) return events.raiseNotCanonical();
  let reason = walker.locate(low, high, ACCESS.READ, PRIVILEGE.SUPERVISOR);
  if (reason !== 0) return reason;
  if (!walker.leafEncrypted) return events.raisePageFault(PF.PRESENT | PF.RESERVED, low, high);
  const { gfn } = walker;
  reason = nested.translateNested(gfn, 0, ACCESS.READ, NPF.HIGH_GUEST_FINAL, true);
  return reason === 0 ? check.checkOwner(nested.frame, gfn, 0, ACCESS.READ) : reason;
}
/** The high word of RAX in the state block. */
const RAX_HIGH = 4;

/** Whether 4 KiB were asked for where the nested tables and the RMP have no larger page. 0, or a LEAVE code. */
function checkSmall(i: SystemInstruction, rmp: Rmp, size: number): number {
  const { walker, nested, rmp: check } = i.parts;
  const isSmall = !rmp.isLarge(nested.frame as Pfn) && (nested.rights & NESTED_LARGE) === 0;
  return size === LARGE || isSmall ? 0 : check.sizeMismatch(walker.gfn, 0, ACCESS.READ);
}

/** Whether 2 MiB were asked for where the guest's tables, the nested ones and the RMP have a page of 2 MiB. 0 or DONE. */
function checkLarge(i: SystemInstruction, rmp: Rmp, size: number): number {
  const { walker, nested } = i.parts;
  const isLarge = rmp.isLarge(nested.frame as Pfn) && (nested.rights & NESTED_LARGE) !== 0 && walker.large;
  return size === SMALL || isLarge ? 0 : finish(i, FAIL_SIZEMISMATCH);
}

/** Whether the page that was located is validated. 0, or a LEAVE code with #VC pending. */
function checkValidated(i: SystemInstruction, rmp: Rmp): number {
  const { registers, nested, events } = i.parts;
  if ((rmp.words[rmp.indexOf(nested.frame) + 1]! & RMP_WORD1.VALIDATED) !== 0) return 0;
  events.faultAddress = registers.gprWord(GPR.RAX);
  events.faultAddressHigh = registers.word(RAX_HIGH);
  return events.raiseWith(VECTOR.VC, VC_PAGE_NOT_VALIDATED);
}
