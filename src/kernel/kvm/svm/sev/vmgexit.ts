/**
 * VMGEXIT: a guest's request by its GHCB page (Linux arch/x86/kvm/svm/sev.c, sev_handle_vmgexit, sev_es_validate_vmgexit; reference facts 5.3). The checks stand in the
 * order of each kernel; events that are exits go to the same handlers as a plain guest's exits.
 */
import { GHCB, GHCB_ANSWER, GHCB_EVENT, GHCB_MALFORMED } from '../../../../abi/ghcb.ts';
import { IOIO, VMCB, VMEXIT } from '../../../../abi/vmcb.ts';
import { ERRNO } from '../../../../base/errors.ts';
import { GUEST_AGAIN } from '../../run-result.ts';
import type { Vcpu } from '../../vcpu.ts';
import { handleExit } from '../exits.ts';
import { createAp } from './ap-creation.ts';
import { answerMmio, stringIo } from './ghcb-io.ts';
import { HYPERVISOR_FEATURES, handleMsrProtocol } from './ghcb-msr.ts';
import type { GhcbRequest } from './ghcb-page.ts';
import { extendedGuestRequest, guestRequest } from './guest-request.ts';
import { changePageStates } from './page-state-change.ts';
import { exitTerminated } from './termination.ts';
import type { VcpuSev } from './vcpu-sev.ts';

const MSR_CODE = 0xfffn;
const PAGE_MASK = 0xfffn;
const CPUID_XSTATE = 0xdn;
const AP_DESTROY = 2n;
const MAX_MMIO = 8n;

/** Fields that an event needs beside the exit code and its two numbers. */
type Needs = (request: GhcbRequest) => readonly number[];
const NEEDED: ReadonlyMap<number, Needs> = new Map<number, Needs>([
  [VMEXIT.WRITE_DR0 + 7, () => [GHCB.RAX]],
  [VMEXIT.RDPMC, () => [GHCB.RCX]],
  [VMEXIT.CPUID, (r) => (r.rax === CPUID_XSTATE ? [GHCB.RAX, GHCB.RCX, GHCB.XCR0] : [GHCB.RAX, GHCB.RCX])],
  [
    VMEXIT.IOIO,
    (r) => {
      const info = Number(r.info1 & 0xffffn);
      if ((info & IOIO.STRING) !== 0) return [GHCB.SW_SCRATCH];
      return (info & IOIO.IN) !== 0 ? [] : [GHCB.RAX];
    },
  ],
  [VMEXIT.MSR, (r) => (r.info1 !== 0n ? [GHCB.RCX, GHCB.RAX, GHCB.RDX] : [GHCB.RCX])],
  [VMEXIT.VMMCALL, () => [GHCB.RAX, GHCB.CPL]],
  [VMEXIT.MONITOR, () => [GHCB.RAX, GHCB.RCX, GHCB.RDX]],
  [VMEXIT.MWAIT, () => [GHCB.RAX, GHCB.RCX]],
  [GHCB_EVENT.MMIO_READ, () => [GHCB.SW_SCRATCH]],
  [GHCB_EVENT.MMIO_WRITE, () => [GHCB.SW_SCRATCH]],
  [GHCB_EVENT.PAGE_STATE_CHANGE, () => [GHCB.SW_SCRATCH]],
  [GHCB_EVENT.AP_CREATION, (r) => ((r.info1 & 0xffff_ffffn) === AP_DESTROY ? [] : [GHCB.RAX])],
]);
const NOTHING_NEEDED: ReadonlySet<number> = new Set([
  VMEXIT.READ_DR0 + 7,
  VMEXIT.RDTSC,
  VMEXIT.RDTSCP,
  VMEXIT.INVD,
  VMEXIT.WBINVD,
  GHCB_EVENT.NMI_COMPLETE,
  GHCB_EVENT.AP_RESET_HOLD,
  GHCB_EVENT.AP_JUMP_TABLE,
  GHCB_EVENT.GUEST_REQUEST,
  GHCB_EVENT.EXTENDED_GUEST_REQUEST,
  GHCB_EVENT.HYPERVISOR_FEATURES,
  GHCB_EVENT.TERMINATION,
  GHCB_EVENT.UNSUPPORTED_EVENT,
]);
const SNP_ONLY: ReadonlySet<number> = new Set([
  GHCB_EVENT.PAGE_STATE_CHANGE,
  GHCB_EVENT.GUEST_REQUEST,
  GHCB_EVENT.EXTENDED_GUEST_REQUEST,
  GHCB_EVENT.AP_CREATION,
  GHCB_EVENT.HYPERVISOR_FEATURES,
]);

/** The exit is in the vCPU's VMCB. A run result. */
export function handleVmgexit(vcpu: Vcpu): number {
  const sev = vcpu.sev!;
  const msr = vcpu.vmcb.long(VMCB.GHCB_GPA);
  if ((msr & MSR_CODE) !== 0n) return handleMsrProtocol(sev, msr);
  // Without a page there is nobody to tell: the guest runs on.
  const ghcb = msr === 0n ? undefined : sev.mapGhcb(Number(msr));
  if (ghcb === undefined) return GUEST_AGAIN;
  ghcb.take();
  sev.takeRegisters();
  const { request } = ghcb;
  const { policy } = sev.sev.vm;
  const isSnp = (sev.sev.vmsaFeatures & 1n) !== 0n;
  if (isSnp && sev.registeredGhcb !== ghcb.gpa / 4096) {
    if (!policy.ghcbErrorsToGuest) return -ERRNO.EINVAL;
    return malformed(sev, GHCB_MALFORMED.NOT_REGISTERED);
  }
  const refusal = validate(request, isSnp, policy.ghcbErrorsToGuest);
  if (refusal !== 0) return malformed(sev, refusal);
  ghcb.answer(0n, 0n);
  return dispatch(sev, request);
}

const malformed = (sev: VcpuSev, reason: number): number => sev.answer(GHCB_ANSWER.MALFORMED, reason);

/** 0, or GHCB_MALFORMED. `late`: in 7.2's order and with its reasons. */
function validate(request: GhcbRequest, isSnp: boolean, late: boolean): number {
  const { MISSING_INPUT, INVALID_EVENT, INVALID_INPUT, INVALID_USAGE } = GHCB_MALFORMED;
  if (request.usage !== 0) return INVALID_USAGE;
  const code = Number(request.code);
  const needs = NEEDED.get(code);
  const known = needs !== undefined || NOTHING_NEEDED.has(code);
  const misplaced = SNP_ONLY.has(code) && !isSnp;
  if (late && misplaced) return INVALID_EVENT;
  const basic = [GHCB.SW_EXITCODE, GHCB.SW_EXITINFO1, GHCB.SW_EXITINFO2];
  if (!basic.every((field) => request.has(field))) return MISSING_INPUT;
  if (!known) return INVALID_EVENT;
  if (needs !== undefined && !needs(request).every((field) => request.has(field))) return MISSING_INPUT;
  if (misplaced) return MISSING_INPUT;
  return isInputRefused(request, code, late) ? (late ? INVALID_INPUT : MISSING_INPUT) : 0;
}

/** Numbers of the request that cannot be meant. */
function isInputRefused(request: GhcbRequest, code: number, late: boolean): boolean {
  const { info1, info2 } = request;
  switch (code) {
    case GHCB_EVENT.GUEST_REQUEST:
    case GHCB_EVENT.EXTENDED_GUEST_REQUEST:
      return (info1 & PAGE_MASK) !== 0n || (info2 & PAGE_MASK) !== 0n || info1 === info2;
    case GHCB_EVENT.MMIO_READ:
    case GHCB_EVENT.MMIO_WRITE:
      return late && info2 > MAX_MMIO;
    default:
      return false;
  }
}

function dispatch(sev: VcpuSev, request: GhcbRequest): number {
  const { vcpu } = sev;
  const { vmcb } = vcpu;
  const code = Number(request.code);
  switch (code) {
    case GHCB_EVENT.MMIO_READ:
      return answerMmio(sev, 'read');
    case GHCB_EVENT.MMIO_WRITE:
      return answerMmio(sev, 'write');
    case GHCB_EVENT.NMI_COMPLETE:
      vcpu.events.nmiMasked = false;
      vcpu.events.requested = true;
      return GUEST_AGAIN;
    case GHCB_EVENT.AP_RESET_HOLD:
      return sev.holdReset('event');
    case GHCB_EVENT.AP_JUMP_TABLE:
      return jumpTable(sev, request);
    case GHCB_EVENT.PAGE_STATE_CHANGE:
      return changePageStates(sev);
    case GHCB_EVENT.GUEST_REQUEST:
      return guestRequest(sev, Number(request.info1), Number(request.info2));
    case GHCB_EVENT.EXTENDED_GUEST_REQUEST:
      return extendedGuestRequest(sev, Number(request.info1), Number(request.info2));
    case GHCB_EVENT.AP_CREATION:
      return createAp(sev, request) ? GUEST_AGAIN : malformed(sev, GHCB_MALFORMED.INVALID_INPUT);
    case GHCB_EVENT.HYPERVISOR_FEATURES:
      return sev.answer(0, HYPERVISOR_FEATURES);
    case GHCB_EVENT.TERMINATION:
      return exitTerminated(vcpu, BigInt(sev.ghcb!.gpa));
    case GHCB_EVENT.UNSUPPORTED_EVENT:
      return -ERRNO.EINVAL;
    case VMEXIT.IOIO:
      if ((request.info1 & BigInt(IOIO.STRING)) !== 0n) return stringIo(sev);
      if (((request.info1 >> 4n) & 7n) === 0n) return GUEST_AGAIN;
      break;
    default:
  }
  vmcb.setLong(VMCB.EXITCODE, request.code);
  vmcb.setLong(VMCB.EXITINFO1, request.info1);
  vmcb.setLong(VMCB.EXITINFO2, request.info2);
  return handleExit(vcpu, code);
}

/** The address that an SEV-ES guest's firmware leaves for its kernel. */
function jumpTable(sev: VcpuSev, request: GhcbRequest): number {
  const vm = sev.sev;
  if (request.info1 === 0n) vm.apJumpTable = request.info2;
  else if (request.info1 === 1n) return sev.answer(0, vm.apJumpTable);
  else return malformed(sev, GHCB_MALFORMED.INVALID_INPUT);
  return GUEST_AGAIN;
}
