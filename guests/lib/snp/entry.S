# Entry of every SNP guest here. The VMM's VMSAs start in 64-bit mode at CPL 0 with the boot area's page tables, no stack, and the vCPU's index in EDI; only vCPU 0
# runs main. The others wait to be created anew (AP creation).

        .section .text.start, "ax"
        .globl  _start
        .type   _start, @function
_start:
        cld
        xorl    %ebp, %ebp
        testl   %edi, %edi
        jnz     ap_reset_hold
        leaq    stack_top(%rip), %rsp
        call    snp_start
        call    main
        movl    %eax, %edi
        call    exit

# AP reset hold by the MSR protocol, without end.
        .globl  ap_reset_hold
ap_reset_hold:
        movl    $0xc0010130, %ecx
        movl    $6, %eax
        xorl    %edx, %edx
        wrmsr
        .byte   0xf3, 0x0f, 0x01, 0xd9  # VMGEXIT
        jmp     ap_reset_hold

        .globl  park
park:
        cli
        hlt
        jmp     park

        .text
# Exceptions: vectors that push an error code, and those that do not.
        .altmacro
        .macro  entry vector
exception_\vector:
        .if !((0x60227d00 >> \vector) & 1)
        pushq   $0
        .endif
        pushq   $\vector
        jmp     exception
        .endm
        .set    number, 0
        .rept   32
        entry   %number
        .set    number, number + 1
        .endr

exception:
        pushq   %r15
        pushq   %r14
        pushq   %r13
        pushq   %r12
        pushq   %r11
        pushq   %r10
        pushq   %r9
        pushq   %r8
        pushq   %rdi
        pushq   %rsi
        pushq   %rbp
        pushq   128(%rsp)               # RSP
        pushq   %rbx
        pushq   %rdx
        pushq   %rcx
        pushq   %rax
        cld
        movq    %rsp, %rdi
        movq    %rsp, %rbp
        andq    $-16, %rsp
        call    snp_exception
        movq    %rbp, %rsp
        popq    %rax
        popq    %rcx
        popq    %rdx
        popq    %rbx
        addq    $8, %rsp
        popq    %rbp
        popq    %rsi
        popq    %rdi
        popq    %r8
        popq    %r9
        popq    %r10
        popq    %r11
        popq    %r12
        popq    %r13
        popq    %r14
        popq    %r15
        addq    $16, %rsp
        iretq

        .section .rodata
        .balign 8
        .globl  exception_entries
exception_entries:
        .macro  address vector
        .quad   exception_\vector
        .endm
        .set    number, 0
        .rept   32
        address %number
        .set    number, number + 1
        .endr

        .bss
        .balign 16
        .skip   32768
stack_top:

        .section .note.GNU-stack, "", @progbits
